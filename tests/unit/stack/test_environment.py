"""Which child is told what."""

from __future__ import annotations

from pathlib import Path

import pytest

from ai_task_orchestra.settings import Settings
from ai_task_orchestra.stack.environment import Wiring, postgres_environment, prefect_client_environment

SECRETS = {
    "ORCHESTRA_DATABASE_URL": "postgresql://u:database-secret@h/d",
    "ORCHESTRA_API_KEY": "key-secret",
    "PGPASSWORD": "pg-secret",
    "PREFECT_API_KEY": "cloud-secret",
    "PREFECT_API_AUTH_STRING": "u:auth-secret",
    "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql://u:prefect-secret@h/p",
}


@pytest.fixture
def wiring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wiring:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFECT_PROFILE", "mine")
    monkeypatch.setenv("ORCHESTRA_WORKER_LIMIT", "7")
    return Wiring(
        Settings(home=tmp_path, _env_file=None),
        database_url="postgresql://o:database-secret@h/orchestra",
        prefect_database_url="postgresql+asyncpg://o:prefect-secret@h/prefect",
        prefect_auth="u:auth-secret",
        ollama_url="http://127.0.0.1:1234",
    )


def secrets_in(environment: dict[str, str]) -> set[str]:
    known = ("database-secret", "key-secret", "pg-secret", "cloud-secret", "auth-secret", "prefect-secret")
    return {secret for secret in known if any(secret in value for value in environment.values())}


def test_the_worker_knows_prefects_password_and_nothing_else(wiring: Wiring) -> None:
    assert secrets_in(wiring.for_worker()) == {"auth-secret"}
    assert wiring.for_worker()["OLLAMA_HOST"] == "http://127.0.0.1:1234"


def test_each_other_child_knows_what_it_needs(wiring: Wiring) -> None:
    assert secrets_in(wiring.for_api()) == {"auth-secret", "database-secret", "key-secret"}
    assert secrets_in(wiring.for_prefect_server()) == {"auth-secret", "prefect-secret"}
    assert secrets_in(wiring.for_migration()) == {"database-secret"}
    assert secrets_in(wiring.for_bootstrap()) == {"auth-secret"}
    assert secrets_in(wiring.for_model_backend()) == set()
    assert secrets_in(postgres_environment()) == set()


def test_prefect_keeps_to_our_folder_and_quiet(wiring: Wiring) -> None:
    for environment in (wiring.for_worker(), wiring.for_prefect_server()):
        assert environment["PREFECT_HOME"] == str(wiring.settings.home / "prefect")
        assert environment["DO_NOT_TRACK"] == "1"
        assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
        assert "PREFECT_PROFILE" not in environment


def test_settings_of_the_operator_reach_the_children(wiring: Wiring) -> None:
    assert wiring.for_worker()["ORCHESTRA_WORKER_LIMIT"] == "7"


def test_a_command_of_its_own_finds_the_password_of_the_server_in_this_home(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, _env_file=None)
    assert "PREFECT_API_AUTH_STRING" not in prefect_client_environment(settings)
    settings.prefect_auth_file.write_text("orchestra:generated\n")
    assert prefect_client_environment(settings)["PREFECT_API_AUTH_STRING"] == "orchestra:generated"


def test_the_password_of_our_server_is_not_sent_to_another(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, prefect_api_url="https://elsewhere/api", _env_file=None)
    settings.prefect_auth_file.write_text("orchestra:generated\n")
    known = prefect_client_environment(settings)
    assert "PREFECT_API_AUTH_STRING" not in known
    assert "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED" not in known


def test_pages_of_the_web_get_no_answer_of_prefect_unless_the_operator_says_so(
    wiring: Wiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
    assert wiring.for_prefect_server()[name] == "http://127.0.0.1:4200,http://localhost:4200"
    monkeypatch.setenv(name, "https://prefect.example")
    assert wiring.for_prefect_server()[name] == "https://prefect.example"
