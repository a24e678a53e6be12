"""What people are told when everything is up."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from ai_task_orchestra.settings import Settings
from ai_task_orchestra.stack.environment import Wiring
from ai_task_orchestra.stack.home import ensure_api_key, ensure_prefect_auth
from ai_task_orchestra.stack.model import ModelServer
from ai_task_orchestra.stack.report import StartReport
from ai_task_orchestra.stack.start import RunningStack
from ai_task_orchestra.stack.summary import summary


@pytest.fixture
def stack(tmp_path: Path) -> RunningStack:
    home = tmp_path / "a home with $pace"
    home.mkdir()
    settings = Settings(home=home, port=8123, _env_file=None)
    auth = ensure_prefect_auth(settings)
    wiring = Wiring(settings, "postgresql://o:hush@h/orchestra", "postgresql+asyncpg://o:hush@h/p", auth, "http://m")
    model = ModelServer("http://m", embedded=False, models=("nomic-embed-text:latest", "llama3.1:8b"))
    return RunningStack(settings, wiring, ensure_api_key(settings), model, 9.5)


def test_addresses_and_files_are_named(stack: RunningStack) -> None:
    text = "\n".join(summary(stack))
    for expected in ("http://127.0.0.1:8123/docs", "http://127.0.0.1:4200", str(stack.settings.prefect_auth_file)):
        assert expected in text
    assert str(stack.key_file) in text


def test_no_secret_is_printed(stack: RunningStack) -> None:
    text = "\n".join(summary(stack))
    assert stack.key_file.read_text().strip() not in text
    assert (stack.wiring.prefect_auth or "").partition(":")[2] not in text
    assert "hush" not in text


def test_the_examples_are_words_a_shell_understands(stack: RunningStack) -> None:
    post, get = [shlex.split(line) for line in summary(stack) if line.strip().startswith("curl")]
    assert post[0] == get[0] == "curl"
    assert f"X-API-Key: $(cat '{stack.key_file}')" in post
    body = json.loads(post[post.index("-d") + 1])
    assert body["parameters"]["model"] == "llama3.1:8b"
    assert post[-1] == get[-1] == "http://127.0.0.1:8123/api/v1/tasks"


def test_without_a_text_model_the_example_uses_the_small_one() -> None:
    assert ModelServer("http://m", embedded=False, models=("nomic-embed-text",)).first_text_model == "smollm2:135m"


@pytest.fixture
def printed() -> io.StringIO:
    return io.StringIO()


def test_long_lines_are_not_broken_and_nothing_is_taken_for_markup(printed: io.StringIO) -> None:
    report = StartReport(Console(file=printed, width=40))
    line = "curl " + "x" * 200 + " [bold]"
    report.say(line)
    assert printed.getvalue() == line + "\n"


def test_without_a_terminal_each_part_is_one_line(printed: io.StringIO) -> None:
    with StartReport(Console(file=printed, width=200)) as report:
        report.begin("API")
        report.update("API", "starting")
        report.done("API", "http://127.0.0.1:8000")
        report.absent("model", "none")
    assert printed.getvalue().splitlines() == [
        "✓ API              http://127.0.0.1:8000  (0.0 s)",
        "! model            none",
    ]


def test_a_terminal_gets_its_cursor_back(printed: io.StringIO) -> None:
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    with pytest.raises(KeyError), StartReport(Console(file=printed, force_terminal=True, width=80)) as report:
        report.begin("API")
        raise KeyError("anything")
    assert printed.getvalue().rindex(shown) > printed.getvalue().rindex(hidden)
