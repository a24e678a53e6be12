"""Who may read what is secret, and change what we run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ai_task_orchestra.doctor.files import check_files
from ai_task_orchestra.doctor.findings import Finding
from ai_task_orchestra.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A data folder and a folder of templates as they should be."""
    monkeypatch.chdir(tmp_path)
    for name, mode in (("home", 0o711), ("templates", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    (tmp_path / "home" / "api-key").touch(0o600)
    return Settings(home=tmp_path / "home", templates_dir=tmp_path / "templates", _env_file=None)


def problems(settings: Settings) -> list[Finding]:
    return [finding for finding in check_files(settings) if finding.verdict == "problem"]


def test_nothing_is_wrong_with_a_new_installation(settings: Settings) -> None:
    assert {finding.verdict for finding in check_files(settings)} == {"ok"}


@pytest.mark.parametrize("name", ["api-key", "prefect-auth", "database-url", "postgres-password"])
def test_a_secret_that_others_can_read_has_its_mend(settings: Settings, name: str) -> None:
    path = settings.home / name
    path.touch()
    path.chmod(0o640)
    (found,) = problems(settings)
    assert found.check == "secrets"
    assert f"chmod 600 {path}" in (found.mend or "")
    path.chmod(0o600)
    assert problems(settings) == []


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("ORCHESTRA_API_KEY=x\n", 0o644, True),
        ("# keys\nexport PREFECT_API_AUTH_STRING=a:b\n", 0o640, True),
        ("ORCHESTRA_DATABASE_URL = postgresql://u:p@h/d\n", 0o604, True),
        ("ORCHESTRA_API_KEY=x\n", 0o600, False),
        ("ORCHESTRA_PORT=8001\n# no API_KEY here\n", 0o644, False),
    ],
)
def test_an_env_file_with_secrets_is_for_its_owner(settings: Settings, text: str, mode: int, told: bool) -> None:
    path = Path(".env")
    path.write_text(text)
    path.chmod(mode)
    assert [finding.mend for finding in problems(settings)] == [f"chmod 600 {path.absolute()}"] * told


@pytest.mark.parametrize("name", ["home", "templates"])
@pytest.mark.parametrize("mode", [0o775, 0o777, 0o1777, 0o702])
def test_a_folder_that_others_can_change_has_its_mend(settings: Settings, name: str, mode: int) -> None:
    folder = settings.home.parent / name
    folder.chmod(mode)
    (found,) = problems(settings)
    assert found.mend == f"chmod go-w {folder}"


def test_the_way_to_a_folder_counts_too_unless_others_can_only_add_to_it(settings: Settings) -> None:
    parent = settings.home.parent
    parent.chmod(0o777)
    assert {finding.mend for finding in problems(settings)} == {f"chmod go-w {parent}"}
    parent.chmod(0o1777)
    assert problems(settings) == []


def test_folders_that_do_not_exist_yet_are_no_problem(settings: Settings) -> None:
    nothing = settings.model_copy(update={"home": settings.home / "not" / "yet"})
    assert problems(nothing) == []
