"""Paths that people name never lead out of their folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as settings_
from hypothesis import strategies as st

from ai_task_orchestra.errors import StepInputError
from ai_task_orchestra.settings import Settings
from flows.paths import open_input, open_regular, parts_of, resolve_input
from tests.support.steps import step_context

BAD_PATHS = [
    "",
    "/etc/passwd",
    "..",
    "../x",
    "a/../b",
    "a/../../b",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    ".",
    "a\\b",
    "..\\x",
    "%2e%2e/x",
    "%2e%2e%2fx",
    "．．/x",
    "a／．．／b",
    "a\x00b",
    "a\nb",
    "a\x1b[31m",
    "a\u202eb",
    "a\u2028b",
    "a\ud800",
    "x" * 201,
    "/".join(["abc"] * 300),
]


@pytest.mark.parametrize("text", BAD_PATHS)
def test_a_path_that_could_lead_elsewhere_is_refused(text: str) -> None:
    with pytest.raises(StepInputError, match=r"^path: "):
        parts_of(text, field="path")


@pytest.mark.parametrize("text", ["a", "a/b.txt", "...", "a/..b", "100%.txt", "-x", "ü/日本.md", ".hidden", "~/a"])
def test_an_ordinary_path_is_taken_as_it_is(text: str) -> None:
    assert "/".join(parts_of(text, field="path")) == text


def test_decomposed_characters_name_the_same_file_as_composed_ones() -> None:
    assert parts_of("u\u0308.txt", field="path") == parts_of("ü.txt", field="path")


@settings_(deadline=None)
@given(st.text(alphabet=st.sampled_from("./\\%25eEfF．／～~a-\u2024\u2025\x00\n"), max_size=12))
def test_whatever_is_accepted_stays_below_its_folder(text: str) -> None:
    try:
        parts = parts_of(text, field="path")
    except StepInputError:
        return
    assert os.path.normpath(Path("/root/of/it", *parts)) == f"/root/of/it/{'/'.join(parts)}"


def test_a_regular_file_below_a_folder_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("text")
    with os.fdopen(open_regular(tmp_path, ("a", "b"), field="script")) as file:
        assert file.read() == "text"


def test_symbolic_links_folders_and_pipes_are_no_regular_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    (tmp_path / "folder-link").symlink_to(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    for names in (("link",), ("folder-link", "file"), ("folder",), ("pipe",), ("missing",), ("folder", "file", "x")):
        with pytest.raises(StepInputError, match=r"^script: "):
            open_regular(tmp_path, names, field="script")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Two input folders: `one` and `two`."""
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    return step_context(tmp_path / "home", input_dirs=folders).settings


def test_an_input_is_found_in_any_input_folder(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "two" / "a.txt").write_text("text")

    assert resolve_input("a.txt", settings) == tmp_path / "two" / "a.txt"
    assert resolve_input(str(tmp_path / "two" / "a.txt"), settings) == tmp_path / "two" / "a.txt"


def test_an_input_outside_the_folders_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "one" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "one" / "inside").symlink_to(tmp_path / "two" / "a.txt")
    (tmp_path / "two" / "a.txt").write_text("text")
    for text in ("out", str(tmp_path / "secret"), "../secret", f"{tmp_path}/one/../secret", "missing", "/etc/passwd"):
        with pytest.raises(StepInputError):
            resolve_input(text, settings)
    assert resolve_input("inside", settings) == tmp_path / "two" / "a.txt"


@pytest.mark.parametrize("swap", ["file", "folder", "pipe"])
def test_an_input_that_is_swapped_after_it_was_checked_is_not_read(
    settings: Settings, tmp_path: Path, swap: str
) -> None:
    secret, folder = tmp_path / "secrets", tmp_path / "one" / "folder"
    for each in (secret, folder):
        each.mkdir()
        (each / "a.txt").write_text(each.name)
    checked = resolve_input("folder/a.txt", settings)
    if swap == "folder":
        folder.rename(tmp_path / "away")
        folder.symlink_to(secret)
    else:
        checked.unlink()
        os.mkfifo(checked) if swap == "pipe" else checked.symlink_to(secret / "a.txt")
    with pytest.raises(StepInputError, match=r"^file: "):
        open_input(checked, settings, field="file")
