from __future__ import annotations

from pathlib import Path

import pytest

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.settings import load_settings


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        (None, "http://127.0.0.1:11434"),
        ("10.0.0.5", "http://10.0.0.5:11434"),
        ("10.0.0.5:8080", "http://10.0.0.5:8080"),
        ("http://models.example", "http://models.example:80"),
        ("https://models.example/ollama/", "https://models.example:443/ollama"),
        ("0.0.0.0:11434", "http://127.0.0.1:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:9", "http://[::1]:9"),
    ],
)
def test_the_model_servers_address_is_completed_as_ollama_does(given: str | None, completed: str) -> None:
    assert load_settings(ollama_host=given).ollama_url == completed


def test_anything_but_postgresql_is_refused_by_the_variables_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRA_DATABASE_URL", "sqlite:///tasks.db")
    with pytest.raises(ConfigurationError, match=r"ORCHESTRA_DATABASE_URL.*only PostgreSQL"):
        load_settings()


def test_folder_lists_are_split_and_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCHESTRA_INPUT_DIRS", f"{tmp_path}/a, {tmp_path}/b")
    monkeypatch.setenv("ORCHESTRA_GIT_PROTOCOLS", "https,file")
    settings = load_settings()
    assert settings.inputs == (tmp_path / "a", tmp_path / "b")
    assert settings.git_protocols == ("https", "file")


def test_without_input_folders_the_one_below_home_is_read(tmp_path: Path) -> None:
    assert load_settings(home=tmp_path).inputs == (tmp_path / "inputs",)
