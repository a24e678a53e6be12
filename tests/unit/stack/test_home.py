from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ai_task_orchestra.api_keys import looks_like_key
from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.settings import Settings
from ai_task_orchestra.stack.home import (
    ensure_api_key,
    ensure_prefect_auth,
    locked_home,
    read_api_key,
    write_private,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "deep" / "home", _env_file=None)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_home_may_be_entered_but_not_read_by_others(settings: Settings) -> None:
    with locked_home(settings) as place:
        assert mode(settings.home) == 0o711
        assert mode(place.logs) == 0o700
        assert (settings.home / "inputs").is_dir()


def test_a_home_that_exists_keeps_its_permissions(settings: Settings) -> None:
    settings.home.mkdir(parents=True)
    settings.home.chmod(0o750)
    with locked_home(settings):
        assert mode(settings.home) == 0o750


def test_a_second_stack_on_the_same_home_is_refused_with_the_first_ones_process(settings: Settings) -> None:
    with (
        locked_home(settings),
        pytest.raises(ConfigurationError, match=rf"already running on .*process {os.getpid()}.*ORCHESTRA_HOME"),
        locked_home(settings),
    ):
        pass


def test_the_lock_is_free_again_afterwards(settings: Settings) -> None:
    with locked_home(settings):
        pass
    with locked_home(settings) as place:
        assert not place.after_a_crash


def test_a_stack_that_did_not_end_in_order_is_noticed(settings: Settings) -> None:
    with locked_home(settings):
        pass
    (settings.home / "lock").write_text("4711")  # what a killed one leaves
    with locked_home(settings) as place:
        assert place.after_a_crash


def test_a_home_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigurationError, match="ORCHESTRA_HOME"),
        locked_home(Settings(home=tmp_path / "file" / "home", _env_file=None)),
    ):
        pass


def test_the_api_key_is_made_once_and_readable_by_its_owner_only(settings: Settings) -> None:
    settings.home.mkdir(parents=True)
    path = ensure_api_key(settings)
    key = path.read_text().strip()
    assert looks_like_key(key)
    assert mode(path) == 0o600
    assert ensure_api_key(settings).read_text().strip() == key


@pytest.mark.parametrize("wide", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_may_have_read_is_refused_with_its_mend(settings: Settings, wide: int) -> None:
    settings.home.mkdir(parents=True)
    path = ensure_api_key(settings)
    path.chmod(wide)
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        ensure_api_key(settings)
    path.chmod(0o600)
    assert ensure_api_key(settings) == path


def test_prefects_password_is_generated_unless_the_operator_has_one(settings: Settings) -> None:
    settings.home.mkdir(parents=True)
    generated = ensure_prefect_auth(settings)
    assert generated.startswith("orchestra:")
    assert len(generated) > 40
    assert mode(settings.prefect_auth_file) == 0o600
    assert ensure_prefect_auth(settings) == generated
    given = settings.model_copy(update={"prefect_auth_string": "me:mine"})
    assert ensure_prefect_auth(given) == "me:mine"


def test_our_commands_send_the_operators_key_before_the_one_in_the_file(settings: Settings) -> None:
    settings.home.mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="ORCHESTRA_API_KEY"):
        read_api_key(settings)
    in_file = ensure_api_key(settings).read_text().strip()
    assert read_api_key(settings) == in_file
    assert read_api_key(settings.model_copy(update={"api_key": "mine"})) == "mine"


def test_a_private_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_private(path, "one")
    write_private(path, "two")
    assert path.read_text() == "two"
    assert mode(path) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]
