"""Folders of attempts: nothing of a killed one stays, and nobody's living one is taken away."""

from __future__ import annotations

from pathlib import Path

from ai_task_orchestra.workspaces import folder_of, locked, remove, remove_empty, sweep

TASK = "2f6c1a3e-5b0d-4d57-9f0e-6f2f7f0f8a11"


def test_what_nobody_holds_is_swept_and_what_somebody_holds_stays(tmp_path: Path) -> None:
    left, held = folder_of(tmp_path, TASK, 1), folder_of(tmp_path, TASK, 2)
    with locked(left):
        (left / "clone").mkdir()
    with locked(held):
        assert sweep(tmp_path, young_seconds=0) == 1
        assert list(tmp_path.glob("*/*")) == [held]
        assert held.stat().st_mode & 0o777 == 0o700
    assert sweep(tmp_path, young_seconds=0) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_just_made_is_not_swept(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, TASK, 1)
    folder.mkdir(parents=True)
    assert sweep(tmp_path) == 0
    assert folder.exists()


def test_there_may_be_nothing_to_sweep(tmp_path: Path) -> None:
    assert sweep(tmp_path / "not there") == 0


def test_the_last_attempt_takes_its_tasks_folder_along(tmp_path: Path) -> None:
    first, second = folder_of(tmp_path, TASK, 1), folder_of(tmp_path, TASK, 2)
    for folder in (first, second):
        folder.mkdir(parents=True)
    (first / "file").touch()
    assert not remove_empty(first)
    remove(first)
    assert second.exists()
    assert remove_empty(second)
    assert list(tmp_path.iterdir()) == []
