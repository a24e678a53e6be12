from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from ai_task_orchestra.logs import configure_logging
from ai_task_orchestra.redaction import without_secrets


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(capture=False)


def logged(**options: object) -> io.StringIO:
    stream = io.StringIO()
    configure_logging(stream=stream, **options)
    return stream


def test_a_server_writes_one_json_object_a_line_with_the_ids() -> None:
    stream = logged()
    logging.getLogger("api.dispatcher").info("task_dispatched", extra={"task_id": "t1", "generation": 2})
    line = json.loads(stream.getvalue())
    assert line["event"] == "task_dispatched"
    assert (line["task_id"], line["generation"]) == ("t1", 2)
    assert (line["level"], line["logger"]) == ("info", "api.dispatcher")
    assert line["timestamp"].endswith("Z")


def test_arguments_of_other_programs_lines_are_put_in() -> None:
    stream = logged()
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 42)
    assert json.loads(stream.getvalue())["event"] == "Started server process [42]"


def test_an_exception_keeps_its_traceback_on_one_line() -> None:
    stream = logged()
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("x").exception("it_failed")
    assert len(stream.getvalue().splitlines()) == 1
    assert "broken" in json.dumps(json.loads(stream.getvalue())["exception"])


def test_people_get_lines_without_braces() -> None:
    stream = logged(json=False)
    logging.getLogger("x").warning("port_taken", extra={"port": 8000})
    assert "port_taken" in stream.getvalue()
    assert "port=8000" in stream.getvalue()


def test_the_level_holds_and_chatty_libraries_are_quiet() -> None:
    stream = logged(level="info")
    logging.getLogger("x").debug("too_much")
    logging.getLogger("httpx").info("HTTP Request: GET ...")
    assert stream.getvalue() == ""


def test_a_file_is_made_with_the_first_line_only(tmp_path: Path) -> None:
    configure_logging(file=tmp_path / "up.log")
    assert not (tmp_path / "up.log").exists()
    logging.getLogger("x").info("child_started")
    assert json.loads((tmp_path / "up.log").read_text())["event"] == "child_started"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql+asyncpg://o:hush@h:5432/d", "postgresql+asyncpg://o:***@h:5432/d"),
        ("https://user:hush@example.org/repo.git", "https://user:***@example.org/repo.git"),
        ("the key ato_0123456789abcdefghijklmnopqr!", "the key ato_***!"),
        ("http://127.0.0.1:8000/tasks", "http://127.0.0.1:8000/tasks"),
    ],
)
def test_keys_and_passwords_are_taken_out(text: str, hidden: str) -> None:
    assert without_secrets(text) == hidden
    stream = logged()
    logging.getLogger("x").error("failed: %s", text, extra={"nested": {"url": [text]}})
    assert json.loads(stream.getvalue())["event"] == f"failed: {hidden}"
    assert json.loads(stream.getvalue())["nested"] == {"url": [hidden]}
