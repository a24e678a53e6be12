"""Which settings and files are refused at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.api_keys import generate_key
from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.exposure import dangers, readable_by_others, refuse_dangers, weakness
from ai_task_orchestra.settings import Settings

GOOD = "wq8Zk3-fVn2-xT7p-Lm5d"


def settings_for(home: Path, **given: Any) -> Settings:
    return Settings(home=home, _env_file=None, **given)


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("your-api-key-here", "sample"),
        ("YOUR_API_KEY_HERE_PLEASE", "sample"),
        ("change-me-change-me-change-me", "sample"),
        ("hunter2", "7 characters"),
        ("fifteen-letters", "15 characters"),
        ("abababababababababab", "different"),
    ],
)
def test_a_secret_that_can_be_guessed_is_told_why(secret: str, why: str) -> None:
    assert why in (weakness(secret) or "")


@pytest.mark.parametrize("secret", [generate_key(), GOOD, "correct horse battery staple", "0123456789abcdef"])
def test_a_long_one_is_good_enough(secret: str) -> None:
    assert weakness(secret) is None


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_its_owner_alone_is_private(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    assert readable_by_others(path) is None
    assert readable_by_others(tmp_path / "nothing") is None


@pytest.mark.parametrize("name", ["api-key", "prefect-auth", "database-url"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_secret_that_others_can_read_is_refused_wherever_we_listen(tmp_path: Path, name: str, mode: int) -> None:
    path = tmp_path / name
    path.write_text(generate_key())
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        refuse_dangers(settings_for(tmp_path))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"host": "0.0.0.0", "api_key": "hunter2"}, "ORCHESTRA_API_KEY"),
        ({"host": "192.168.1.5", "api_key": "your-api-key-here"}, "ORCHESTRA_API_KEY"),
        ({"prefect_host": "0.0.0.0", "prefect_auth_string": "admin:pass"}, "PREFECT_API_AUTH_STRING"),
        ({"prefect_host": "0.0.0.0", "prefect_auth_string": "a-long-name-without-password"}, "PREFECT_API_AUTH_STRING"),
    ],
)
def test_a_weak_secret_is_refused_where_others_can_try_it(tmp_path: Path, given: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as refused:
        refuse_dangers(settings_for(tmp_path, **given))
    assert "secrets.token_urlsafe" in refused.value.message
    for secret in ("hunter2", "your-api-key-here", "admin:pass"):
        assert secret not in refused.value.message


def test_a_weak_key_in_the_key_file_is_one_too(tmp_path: Path) -> None:
    path = tmp_path / "api-key"
    path.write_text("hunter2\n")
    path.chmod(0o600)
    assert [str(path) in danger for danger in dangers(settings_for(tmp_path, host="0.0.0.0"))] == [True]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"api_key": "dev"},
        {"prefect_auth_string": "admin:pass"},
        {"host": "0.0.0.0", "api_key": GOOD},
        {"host": "0.0.0.0", "api_key": "  "},
        {"prefect_host": "0.0.0.0", "prefect_auth_string": f"orchestra:{GOOD}"},
        {"prefect_host": "0.0.0.0", "prefect_api_url": "https://elsewhere/api", "prefect_auth_string": "a:b"},
    ],
)
def test_anything_else_may_start(tmp_path: Path, given: dict[str, str]) -> None:
    path = tmp_path / "api-key"
    path.write_text(generate_key())
    path.chmod(0o600)
    assert list(dangers(settings_for(tmp_path, **given))) == []
