"""What of the machine a confined program may see."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.isolation import visible
from ai_task_orchestra.settings import Settings


def settings_with(home: Path, **more: Any) -> Settings:
    return Settings(_env_file=None, home=home, **more)


def covers(paths: tuple[str, ...], path: Path) -> bool:
    return any(path == Path(each) or path.is_relative_to(each) for each in paths)


def test_programs_and_the_interpreter_are_visible_and_our_home_is_not(tmp_path: Path) -> None:
    paths = visible.readable_paths(settings_with(tmp_path / "home"))

    assert {"/usr", sys.prefix} <= set(paths)
    assert not covers(paths, tmp_path / "home" / "api-key")
    assert not covers(paths, Path("/etc/shadow"))
    assert covers(paths, tmp_path / "home" / "inputs" / "a.txt")


def test_a_home_inside_a_visible_folder_is_left_out_of_it(tmp_path: Path) -> None:
    for name in ("bin", "share", "orchestra/workspaces"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        paths = visible.readable_paths(settings_with(tmp_path / "orchestra", program_dirs=(folder,)))
        assert covers(paths, tmp_path / "bin")
        assert covers(paths, tmp_path / "share")
        assert not covers(paths, tmp_path / "orchestra" / "api-key")
        assert not covers(paths, tmp_path / "link")


@pytest.mark.parametrize("inputs", ["", "home", "home/inputs/deep"])
def test_no_input_folder_opens_our_home(tmp_path: Path, inputs: str) -> None:
    (tmp_path / "home" / "inputs" / "deep").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    paths = visible.readable_paths(settings_with(tmp_path / "home", input_dirs=(tmp_path / inputs,)))

    assert not covers(paths, tmp_path / "home" / "api-key")
    assert covers(paths, tmp_path / "home" / "inputs" / "deep") is (inputs == "home/inputs/deep")
    assert covers(paths, tmp_path / "data") is (inputs == "")


def test_git_credentials_and_outputs_are_hidden_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    settings = settings_with(
        tmp_path / "home",
        program_dirs=(tmp_path / "tools",),
        git_credentials=tmp_path / "tools" / "netrc",
        output_dirs=(tmp_path / "tools" / "results",),
    )
    for name in ("netrc", "results", "program"):
        (tmp_path / "tools" / name).touch()
    paths = visible.readable_paths(settings)

    assert covers(paths, tmp_path / "tools" / "program")
    assert not covers(paths, tmp_path / "tools" / "netrc")
    assert not covers(paths, tmp_path / "tools" / "results")


def test_folders_of_programs_in_somebodys_home_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = Path.home() / "bin"
    monkeypatch.setenv("PATH", os.pathsep.join([str(private), "relative", "/usr/bin", str(tmp_path)]))
    settings = settings_with(tmp_path / "home")
    assert not covers(visible.readable_paths(settings), private)
    assert visible.confined_search_path(settings) == f"/usr/bin:{tmp_path}"

    settings = settings_with(tmp_path / "home", program_dirs=(private,))
    assert covers(visible.readable_paths(settings), private)
    assert visible.confined_search_path(settings) == f"{private}:/usr/bin:{tmp_path}"


def test_who_may_enter_a_folder(tmp_path: Path) -> None:
    account = 1_900_000_000
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    (tmp_path / "a").chmod(0o700)
    assert visible.enterable(inside, None)
    assert not visible.enterable(inside, account)
    assert not visible.enterable(inside / "c", account)
