"""`orchestra doctor` asks real servers. Loopback addresses stand for those under which others see this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.doctor.examine import examine
from ai_task_orchestra.doctor.findings import Finding
from ai_task_orchestra.settings import Settings
from ai_task_orchestra.testing.scripted_ollama import ScriptedOllama
from api.identity import SCOPES
from api.keys import NewKey, open_keys
from api.migrate import upgrade
from tests.support.api_app import BuiltApp, settings_for
from tests.support.served_api import served
from tests.support.servers import free_port, prefect_environment

HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An installation of which nothing runs."""
    (tmp_path / "home").mkdir(mode=0o711)
    return Settings(
        _env_file=None,
        home=tmp_path / "home",
        templates_dir=tmp_path,
        port=free_port(),
        prefect_port=free_port(),
        ollama_host=f"{HERE}:{free_port()}",
    )


async def findings(settings: Settings, check: str, *, outside: tuple[str, ...] = (), **given: Any) -> list[Finding]:
    found = await examine(settings.model_copy(update=given), outside=outside)
    return [finding for finding in found if finding.check == check]


async def test_what_does_not_run_is_a_note(settings: Settings) -> None:
    found = await examine(settings, outside=())
    assert [finding.says for finding in found if finding.verdict == "problem"] == []
    assert {"API", "Prefect", "models", "stored keys"} <= {each.check for each in found if each.verdict == "note"}


async def test_an_api_that_wants_a_key_is_fine_and_anything_else_there_is_not(
    settings: Settings, tmp_path: Path
) -> None:
    with served(BuiltApp(settings_for(tmp_path / "api")).app) as url:
        (found,) = await findings(settings, "API", url=url)
    assert found.verdict == "ok"
    async with ScriptedOllama() as other:
        (found,) = await findings(settings, "API", url=other.url)
    assert found.verdict == "problem"
    assert "ORCHESTRA_URL" in (found.mend or "")


async def test_a_prefect_without_a_password_is_told(settings: Settings, prefect_api_url: str) -> None:
    (found,) = await findings(settings, "Prefect", prefect_api_url=prefect_api_url)
    assert found.verdict == "problem"
    assert "PREFECT_SERVER_API_AUTH_STRING" in (found.mend or "")


async def test_a_model_server_that_others_can_reach_is_told(settings: Settings) -> None:
    async with ScriptedOllama() as ollama:
        mine = {"ollama_host": ollama.url}
        (told,) = [f for f in await findings(settings, "models", outside=(HERE,), **mine) if "reaches" in f.says]
        hidden = await findings(settings, "models", outside=(ELSEWHERE,), **mine)
    assert told.verdict == "problem"
    assert f"{HERE}:{ollama.port}" in told.says
    assert "OLLAMA_HOST=127.0.0.1" in (told.mend or "")
    assert not [finding for finding in hidden if "reaches" in finding.says]


async def test_a_database_that_others_can_reach_is_told(settings: Settings, database_url: str) -> None:
    (told,) = await findings(settings, "PostgreSQL", outside=(HERE,), database_url=database_url)
    (hidden,) = await findings(settings, "PostgreSQL", outside=(ELSEWHERE,), database_url=database_url)
    assert (told.verdict, hidden.verdict) == ("note", "ok")
    assert "listen_addresses" in (told.mend or "")


async def test_keys_that_open_everything_for_ever_are_told(settings: Settings, database_url: str) -> None:
    given = {"database_url": database_url}
    (unmigrated,) = await findings(settings, "stored keys", **given)
    assert unmigrated.verdict == "note"
    await upgrade(database_url)
    (none,) = await findings(settings, "stored keys", **given)
    assert none.verdict == "problem"
    async with open_keys(database_url) as keys:
        await keys.create(NewKey("ci"))
        await keys.create(NewKey("for a while", scopes=SCOPES, expires_at=datetime.now(UTC) + timedelta(days=1)))
        (fine,) = await findings(settings, "stored keys", **given)
        await keys.create(NewKey("for ever", scopes=SCOPES))
        (told,) = await findings(settings, "stored keys", **given)
    assert (fine.verdict, told.verdict) == ("ok", "note")
    assert "for ever" in told.says and "for a while" not in told.says


@pytest.fixture
def environment(settings: Settings, tmp_path: Path) -> dict[str, str]:
    """Variables that say the same as `settings`."""
    return prefect_environment(tmp_path) | {
        "ORCHESTRA_HOME": str(settings.home),
        "ORCHESTRA_TEMPLATES_DIR": str(settings.templates_dir),
        "ORCHESTRA_PORT": str(settings.port),
        "ORCHESTRA_PREFECT_PORT": str(settings.prefect_port),
        "OLLAMA_HOST": str(settings.ollama_host),
    }


def doctor(environment: dict[str, str], folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ai_task_orchestra.cli", "doctor", *options]
    return subprocess.run(argv, env=environment, cwd=folder, capture_output=True, text=True, timeout=60)


def test_the_command_says_how_to_mend_each_problem_and_ends_with_1(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "home" / "api-key").write_text("ato_something-secret")
    (tmp_path / "home" / "api-key").chmod(0o644)
    done = doctor(environment, tmp_path)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    (at,) = [number for number, line in enumerate(lines) if "api-key is open" in line]
    assert lines[at].startswith("problem")
    assert "mend: run `chmod 600" in lines[at + 1]
    assert "problems: 1" in lines[-1]
    assert "something-secret" not in done.stdout
    read = json.loads(doctor(environment, tmp_path, "--json").stdout)
    assert [found["check"] for found in read if found["verdict"] == "problem"] == ["secrets"]


def test_the_command_ends_with_0_when_there_is_nothing_to_mend(environment: dict[str, str], tmp_path: Path) -> None:
    done = doctor(environment, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "problems: 0" in done.stdout
