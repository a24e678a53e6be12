from __future__ import annotations

import os
from pathlib import Path

import pytest

from ai_task_orchestra.errors import NotFoundError
from ai_task_orchestra.library import TemplateLibrary


def template(name: str, seconds: float = 1) -> str:
    return f"name: {name}\ndescription: Waits\nsteps:\n  - type: wait\n    seconds: {seconds}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.yaml").write_text(template("bravo"))
    (tmp_path / "a.yml").write_text(template("zulu"))
    return tmp_path


def age(folder: Path) -> None:
    """Make all files old enough that their times alone say whether they changed."""
    for path in folder.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))


def test_templates_are_found_by_name_and_sorted(folder: Path) -> None:
    (folder / "notes.txt").write_text("not a template")
    (folder / ".hidden.yaml").write_text("{")
    (folder / "sub.yaml").mkdir()
    library = TemplateLibrary(folder)
    assert list(library.templates) == ["bravo", "zulu"]
    assert library.get("zulu").path == folder / "a.yml"
    assert library.problems == ()


def test_an_unknown_name_is_not_found(folder: Path) -> None:
    with pytest.raises(NotFoundError):
        TemplateLibrary(folder).get("nobody")


def test_a_broken_file_is_left_out_and_reported_while_the_others_stay(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "c.yaml").write_text("name: broken\ndescription: x\nsteps:\n  - type: nonsense\n")
    (folder / "d.yaml").write_bytes(b"name: x\n\xff\xfe")
    (folder / "e.yaml").write_bytes(b"a: \x07")
    library = TemplateLibrary(folder)
    assert list(library.templates) == ["bravo", "zulu"]
    assert [(p.path, p.line) for p in library.problems] == [
        (folder / "c.yaml", 4),
        (folder / "d.yaml", 2),
        (folder / "e.yaml", None),
    ]
    assert [record.message for record in caplog.records] == ["template_left_out"] * 3


def test_of_two_templates_with_one_name_the_first_file_stays_and_both_are_reported(folder: Path) -> None:
    (folder / "c.yaml").write_text("# a remark\n" + template("bravo", 2))
    library = TemplateLibrary(folder)
    assert library.get("bravo").path == folder / "b.yaml"
    assert [(p.path, p.line) for p in library.problems] == [(folder / "b.yaml", 1), (folder / "c.yaml", 2)]
    assert "left out" in library.problems[1].reason


def test_nothing_is_read_again_while_nothing_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    age(folder)
    library = TemplateLibrary(folder)

    def no_reading(*_: object, **__: object) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr(Path, "open", no_reading)
    assert library.refresh() is False


def test_changes_are_noticed(folder: Path) -> None:
    age(folder)
    library = TemplateLibrary(folder)
    before = library.signature

    (folder / "b.yaml").write_text(template("bravo", 7))
    assert library.refresh() is True
    assert library.get("bravo").steps[0].fields == {"seconds": 7}
    assert library.signature != before
    assert library.refresh() is False

    (folder / "a.yml").unlink()
    assert library.refresh() is True
    assert list(library.templates) == ["bravo"]

    (folder / "new.yaml").write_text(template("new"))
    assert library.refresh() is True
    assert list(library.templates) == ["bravo", "new"]


def test_a_second_change_within_the_clocks_grain_is_noticed(folder: Path) -> None:
    library = TemplateLibrary(folder)
    path = folder / "b.yaml"
    status = path.stat()
    with path.open("r+") as file:  # same inode, same size
        file.write(template("bravo", 2))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert library.refresh() is True
    assert library.get("bravo").steps[0].fields == {"seconds": 2}


def test_a_file_that_was_only_touched_is_no_change(folder: Path) -> None:
    age(folder)
    library = TemplateLibrary(folder)
    signature, spec = library.signature, library.get("bravo")
    (folder / "b.yaml").touch()
    assert library.refresh() is False
    assert library.signature == signature
    assert library.get("bravo") is spec


def test_a_broken_file_comes_back_once_it_is_mended(folder: Path) -> None:
    (folder / "b.yaml").write_text("{")
    library = TemplateLibrary(folder)
    assert (list(library.templates), len(library.problems)) == (["zulu"], 1)
    (folder / "b.yaml").write_text(template("bravo"))
    assert library.refresh() is True
    assert (list(library.templates), library.problems) == (["bravo", "zulu"], ())


def test_a_folder_that_is_missing_is_a_problem_until_it_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    library = TemplateLibrary(folder)
    assert dict(library.templates) == {}
    assert [problem.path for problem in library.problems] == [folder]
    assert library.refresh() is False
    folder.mkdir()
    (folder / "a.yaml").write_text(template("a"))
    assert library.refresh() is True
    assert list(library.templates) == ["a"]
    assert library.problems == ()


def test_the_same_files_elsewhere_have_the_same_signature(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("copy")
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert TemplateLibrary(other).signature == TemplateLibrary(folder).signature
