from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ai_task_orchestra.stack.log_files import KEPT, LogFile


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "api.log", limit_bytes=100)


def test_a_new_start_begins_a_new_file_and_keeps_a_few(log: LogFile) -> None:
    for number in range(KEPT + 3):
        log.rotate()
        with log.open() as file:
            file.write(f"start {number}".encode())
    kept = {path.name: path.read_text() for path in log.path.parent.iterdir()}
    assert kept == {"api.log": "start 5", "api.log.1": "start 4", "api.log.2": "start 3", "api.log.3": "start 2"}


def test_only_the_owner_reads_logs(log: LogFile) -> None:
    with log.open() as file:
        file.write(b"x" * 200)
    log.shorten()
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in log.path.parent.iterdir())


def test_a_log_that_outgrew_its_limit_is_cut_while_its_writer_goes_on(log: LogFile) -> None:
    with log.open() as file:
        file.write(b"a" * 100)
        file.flush()
        assert not log.shorten()
        file.write(b"b")
        file.flush()
        assert log.shorten()
        file.write(b"after")
        file.flush()
    assert log.path.read_bytes() == b"after"
    assert log.path.with_name("api.log.1").read_bytes() == b"a" * 100 + b"b"


def test_a_log_that_is_not_there_is_no_error(log: LogFile) -> None:
    assert not log.shorten()
    assert log.last_lines() == []
    assert str(log.path) in log.last_words()


def test_last_words_hold_no_password_and_no_key(log: LogFile) -> None:
    log.path.write_text(
        "connecting to postgresql://orchestra:hush@127.0.0.1/x\n\nkey ato_0123456789abcdefghijklmnopqr\n"
    )
    assert "hush" not in log.last_words()
    assert "0123456789" not in log.last_words()
    assert "postgresql://orchestra:***@127.0.0.1/x" in log.last_words()
