"""Storing results: inside their folders, at once or not at all, and not over what is somebody else's."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ai_task_orchestra.errors import StepError, StepInputError
from ai_task_orchestra.settings import Settings
from flows.outputs import resolve_output, write_output
from tests.support.steps import step_context


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return step_context(tmp_path, output_dirs=(tmp_path / "more",)).settings


def store(path: str, settings: Settings, data: bytes = b"data", tenant: str = "default") -> None:
    write_output(resolve_output(path, settings), data, tenant=tenant)


def files(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and ".orchestra-owners" not in path.parts
    )


def test_a_relative_path_goes_below_the_first_output_folder(settings: Settings, tmp_path: Path) -> None:
    store("a/b/c.txt", settings)

    assert (tmp_path / "outputs" / "a" / "b" / "c.txt").read_bytes() == b"data"
    assert files(tmp_path) == ["outputs/a/b/c.txt"]


def test_an_absolute_path_must_be_inside_one_of_them(settings: Settings, tmp_path: Path) -> None:
    store(f"{tmp_path}/more/x.txt", settings)

    assert files(tmp_path) == ["more/x.txt"]
    for path in (f"{tmp_path}/else/x", f"{tmp_path}/more/../x", f"{tmp_path}/more", f"{tmp_path}/more-x/y"):
        with pytest.raises(StepInputError):
            store(path, settings)


def test_the_same_tenant_replaces_its_file_without_changing_the_old_one(settings: Settings, tmp_path: Path) -> None:
    store("x.txt", settings, b"old")
    with (tmp_path / "outputs" / "x.txt").open("rb") as reader:
        store("x.txt", settings, b"new and longer")
        assert reader.read() == b"old"  # who reads meanwhile keeps what was there

    assert (tmp_path / "outputs" / "x.txt").read_bytes() == b"new and longer"


def test_another_tenants_file_is_refused(settings: Settings, tmp_path: Path) -> None:
    store("x.txt", settings, b"mine", tenant="one")
    with pytest.raises(StepInputError, match="another tenant"):
        store("x.txt", settings, b"yours", tenant="two")

    assert (tmp_path / "outputs" / "x.txt").read_bytes() == b"mine"


def test_of_two_tenants_at_once_exactly_one_gets_the_path(settings: Settings, tmp_path: Path) -> None:
    def attempt(tenant: str) -> str | None:
        try:
            store("x.txt", settings, tenant.encode(), tenant=tenant)
        except StepInputError:
            return None
        return tenant

    with ThreadPoolExecutor(8) as pool:
        winners = [name for name in pool.map(attempt, [f"tenant-{n}" for n in range(8)]) if name]

    assert len(winners) == 1
    assert (tmp_path / "outputs" / "x.txt").read_text() == winners[0]


def test_a_file_that_no_task_stored_is_not_replaced(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "x.txt").write_text("the operator's")
    with pytest.raises(StepInputError, match="no task stored"):
        store("x.txt", settings)

    assert (tmp_path / "outputs" / "x.txt").read_text() == "the operator's"


def test_links_folders_and_pipes_are_neither_followed_nor_replaced(settings: Settings, tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "dangling").symlink_to(tmp_path / "new")
    (root / "folder-link").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "pipe")
    for path in ("link", "dangling", "folder-link/x", "folder", "pipe", "link/x"):
        with pytest.raises(StepInputError, match=r"^path: "):
            store(path, settings)

    assert (tmp_path / "secret").read_text() == "secret"
    assert files(tmp_path) == ["outputs/link", "secret"]


def test_our_own_records_can_not_be_written_to(settings: Settings) -> None:
    for path in (".orchestra-owners/x", "a/.orchestra-x.part"):
        with pytest.raises(StepInputError, match="kept for ourselves"):
            store(path, settings)


def test_a_full_disk_leaves_the_old_content_and_no_remains(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store("x.txt", settings, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StepError, match="No space left") as caught:
        store("x.txt", settings, b"new")

    assert caught.value.retryable
    assert (tmp_path / "outputs" / "x.txt").read_bytes() == b"old"
    assert files(tmp_path) == ["outputs/x.txt"]
