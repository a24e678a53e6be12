"""What the settings alone say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ai_task_orchestra.doctor.isolation import check_isolation
from ai_task_orchestra.doctor.settings import check_settings
from ai_task_orchestra.settings import Settings

GOOD = "wq8Zk3-fVn2-xT7p-Lm5d"


def verdicts(home: Path, **given: Any) -> dict[str, str]:
    """The worst verdict of each check but that of the account, which is the machine's."""
    order = ("ok", "note", "problem")
    found: dict[str, str] = {}
    for finding in check_settings(Settings(home=home, _env_file=None, **given)):
        if finding.check != "account":
            found[finding.check] = max(found.get(finding.check, "ok"), finding.verdict, key=order.index)
            assert finding.verdict != "problem" or finding.mend
            assert "hunter2" not in finding.says
    return found


def test_the_defaults_are_fine(tmp_path: Path) -> None:
    assert verdicts(tmp_path) == {"keys": "ok", "binds": "ok"}


@pytest.mark.parametrize(
    ("given", "check", "verdict"),
    [
        ({"api_key": "hunter2"}, "keys", "note"),
        ({"api_key": "hunter2", "host": "0.0.0.0"}, "keys", "problem"),
        ({"api_key": GOOD, "host": "0.0.0.0"}, "keys", "ok"),
        ({"api_key": GOOD, "host": "0.0.0.0"}, "binds", "note"),
        ({"prefect_host": "0.0.0.0"}, "binds", "note"),
        ({"prefect_host": "0.0.0.0", "prefect_api_url": "https://elsewhere/api"}, "binds", "ok"),
        ({"prefect_auth_string": "admin:hunter2", "prefect_host": "0.0.0.0"}, "keys", "problem"),
        ({"database_url": "postgresql://u:hunter2@elsewhere/d"}, "keys", "problem"),
        ({"database_url": "postgresql://u@elsewhere/d"}, "keys", "problem"),
        ({"database_url": f"postgresql://u:{GOOD}@elsewhere/d"}, "keys", "ok"),
        ({"database_url": "postgresql://u:hunter2@127.0.0.1/d"}, "keys", "ok"),
        ({"docs": True}, "binds", "ok"),
        ({"git_protocols": ("https", "ext")}, "git protocols", "problem"),
        ({"git_protocols": ("https", "file")}, "git protocols", "note"),
        ({"http_allow_private": True}, "outbound", "note"),
    ],
)
def test_what_is_open_is_told(tmp_path: Path, given: dict[str, Any], check: str, verdict: str) -> None:
    assert verdicts(tmp_path, **given)[check] == verdict


@pytest.mark.parametrize(
    ("level", "open_", "verdict"),
    [(2, (), "ok"), (1, ("a list",), "note"), (0, ("files", "network"), "problem"), (None, (), "problem")],
)
def test_the_isolation_of_programs_is_told_with_what_is_open(
    level: int | None, open_: tuple[str, ...], verdict: str
) -> None:
    found = check_isolation(SimpleNamespace(level=level, open=open_, mend=None))
    assert found.verdict == verdict
    assert all(what in found.says for what in open_)
    assert verdict != "problem" or found.mend
