"""`orchestra run, list, show, cancel, priority, templates, logs` against a server that answers like the API."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ai_task_orchestra.cli import exit_codes
from tests.unit.cli.conftest import Outcome
from tests.unit.cli.fake_api import TEMPLATE, FakeApi, task

Orchestra = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def greet(api: FakeApi) -> None:
    api.on("GET", "/templates/greet", (200, TEMPLATE))
    api.on("POST", "/tasks", (201, task()))


def posted(api: FakeApi) -> dict:
    return next(body for method, path, _, body in api.asked if (method, path) == ("POST", "/tasks"))


def test_run_hands_in_a_task_and_prints_its_id(orchestra: Orchestra, api: FakeApi) -> None:
    done = orchestra("run", "greet", "-p", "name=Ada", "--priority", "8", "--depends-on", "a", "--depends-on", "b")
    assert (done.code, done.out, done.err) == (0, "t1\n", "")
    assert posted(api) == {
        "template": "greet",
        "parameters": {"name": "Ada"},
        "priority": 8,
        "depends_on": ["a", "b"],
    }


def test_values_get_the_types_that_the_template_declares(orchestra: Orchestra, api: FakeApi) -> None:
    arguments = ["name=12", "times=3", "warmth=0.5", "loud=yes", 'others=["x"]', 'more={"a": 1}']
    orchestra("run", "greet", *(word for argument in arguments for word in ("-p", argument)))
    assert posted(api)["parameters"] == {
        "name": "12",
        "times": 3,
        "warmth": 0.5,
        "loud": True,
        "others": ["x"],
        "more": {"a": 1},
    }


def test_a_value_can_come_from_a_file(orchestra: Orchestra, api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "name.txt").write_text("Ada\nLovelace\n")
    orchestra("run", "greet", "-p", "name=@name.txt")
    assert posted(api)["parameters"] == {"name": "Ada\nLovelace\n"}


def test_two_at_signs_are_one_that_is_meant(orchestra: Orchestra, api: FakeApi) -> None:
    orchestra("run", "greet", "-p", "name=@@ada")
    assert posted(api)["parameters"] == {"name": "@ada"}


def test_every_unusable_parameter_is_named_and_nothing_is_sent(orchestra: Orchestra, api: FakeApi) -> None:
    done = orchestra(
        "run",
        "greet",
        "-p",
        "times=many",
        "-p",
        "colour=red",
        "-p",
        "loud=perhaps",
        "-p",
        "more=[]",
        "-p",
        "warmth=NaN",
    )
    assert done.code == exit_codes.USAGE
    for name in ("times", "colour", "loud", "more", "warmth"):
        assert f"{name}: " in done.err
    assert "many" not in done.err
    assert ("POST", "/tasks") not in [(method, path) for method, path, *_ in api.asked]


def test_waiting_prints_the_output_and_nothing_else(orchestra: Orchestra, api: FakeApi) -> None:
    api.on(
        "GET", "/tasks/t1", (200, task()), (200, task("running")), (200, task("completed", result={"output": "Hello"}))
    )
    done = orchestra("run", "greet", "-p", "name=Ada", "--wait")
    assert (done.code, done.out, done.err) == (0, "Hello\n", "")


def test_a_failed_task_is_exit_code_1_with_step_and_reason(orchestra: Orchestra, api: FakeApi) -> None:
    error = {"type": "script_failed", "message": "run.py ended with code 7", "step": "execute_script"}
    api.on("GET", "/tasks/t1", (200, task("failed", error=error)))
    done = orchestra("run", "greet", "-p", "name=Ada", "--wait")
    assert done.code == exit_codes.TASK_FAILED
    assert done.err == "failed in step execute_script: run.py ended with code 7\n"


def test_json_is_the_apis_answer(orchestra: Orchestra, api: FakeApi) -> None:
    api.on("GET", "/tasks/t1", (200, task("running")))
    assert json.loads(orchestra("show", "t1", "--json").out) == task("running")
    assert json.loads(orchestra("run", "greet", "-p", "name=Ada", "--json").out) == task()


def test_list_shows_a_table_and_passes_the_filters_on(orchestra: Orchestra, api: FakeApi) -> None:
    api.on("GET", "/tasks", (200, [task("failed")]))
    done = orchestra("list", "--status", "failed", "--template", "greet", "--limit", "5")
    assert done.out.splitlines()[0].split() == ["TASK", "STATUS", "PRIORITY", "CREATED", "TEMPLATE"]
    assert done.out.splitlines()[1].split()[:3] == ["t1", "failed", "5"]
    assert api.asked[-1][2] == {"status": ["failed"], "template": ["greet"], "limit": ["5"], "offset": ["0"]}


def test_show_has_every_field(orchestra: Orchestra, api: FakeApi) -> None:
    api.on("GET", "/tasks/t1", (200, task("completed", result={"output": "Hello"}, flow_run_url="http://x/runs/1")))
    out = orchestra("show", "t1").out
    for text in ("completed", "greet", '"output": "Hello"', "http://x/runs/1"):
        assert text in out


def test_cancel_and_priority(orchestra: Orchestra, api: FakeApi) -> None:
    api.on("DELETE", "/tasks/t1", (204, None))
    api.on("PATCH", "/tasks/t1/priority", (200, {"id": "t1", "priority": 9, "status": "queued"}))
    assert orchestra("cancel", "t1").code == 0
    assert orchestra("priority", "t1", "9").out == "t1 has priority 9\n"
    assert api.asked[-1][2] == {"priority": ["9"]}


def test_templates_are_listed_and_shown(orchestra: Orchestra, api: FakeApi) -> None:
    api.on("GET", "/templates", (200, [{**TEMPLATE, "steps": None}]))
    assert "greet     Says hello" in orchestra("templates").out
    shown = orchestra("templates", "greet").out
    assert "times" in shown
    assert "integer" in shown
    assert "wait → say" in shown


def test_logs_are_followed_until_the_task_has_ended(
    orchestra: Orchestra, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ai_task_orchestra.cli.task_commands.FOLLOW_SECONDS", 0.01)
    lines = [
        {"timestamp": "2026-11-24T10:30:00.000000Z", "level": "INFO", "step": "say", "message": f"line {number}"}
        for number in range(3)
    ]
    api.on("GET", "/tasks/t1", (200, task("running")), (200, task("running")), (200, task("completed")))
    api.on("GET", "/tasks/t1/logs", (200, lines[:2]), (200, []), (200, lines[2:]))
    out = orchestra("logs", "t1", "--follow").out
    assert [line.split("] ")[1] for line in out.splitlines()] == ["line 0", "line 1", "line 2"]
    offsets = [query["offset"] for method, path, query, _ in api.asked if path == "/tasks/t1/logs"]
    assert offsets == [["0"], ["2"], ["2"]]


def test_control_characters_in_data_do_not_reach_the_terminal(orchestra: Orchestra, api: FakeApi) -> None:
    api.on("GET", "/tasks/t1", (200, task("completed", result={"output": "red \x1b[31mtext\x07"})))
    assert orchestra("run", "greet", "-p", "name=Ada", "--wait").out == "red [31mtext\n"


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (404, {"detail": "There is no task t1."}, exit_codes.REFUSED),
        (403, {"detail": "This API key may only read."}, exit_codes.REFUSED),
        (409, {"detail": "The task has already ended."}, exit_codes.REFUSED),
        (400, {"detail": "missing: name"}, exit_codes.USAGE),
        (422, {"detail": "not valid", "errors": [{"loc": ["body", "x"], "msg": "no", "type": "t"}]}, exit_codes.USAGE),
        (503, {"detail": "The database does not answer."}, exit_codes.UNREACHABLE),
        (500, b"<html>", exit_codes.UNREACHABLE),
        (200, b"<html>", exit_codes.UNREACHABLE),
    ],
)
def test_errors_are_one_line_with_an_exit_code(
    orchestra: Orchestra, api: FakeApi, status: int, body: object, code: int
) -> None:
    api.on("GET", "/tasks/t1", (status, body))
    done = orchestra("show", "t1")
    assert done.code == code
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    if isinstance(body, dict):
        assert str(body["detail"]) in done.err


def test_a_wrong_key_is_refused(orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRA_API_KEY", "another")
    done = orchestra("list")
    assert done.code == exit_codes.REFUSED
    assert "another" not in done.err


def test_no_server_is_exit_code_3(orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRA_URL", "http://127.0.0.1:9")
    done = orchestra("list")
    assert done.code == exit_codes.UNREACHABLE
    assert "http://127.0.0.1:9" in done.err


def test_without_any_key_the_message_names_the_settings(orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCHESTRA_API_KEY")
    done = orchestra("list")
    assert done.code == exit_codes.USAGE
    assert "ORCHESTRA_API_KEY" in done.err


def test_the_key_is_taken_from_the_home_of_a_stack(
    orchestra: Orchestra, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.on("GET", "/tasks", (200, []))
    monkeypatch.delenv("ORCHESTRA_API_KEY")
    monkeypatch.setenv("ORCHESTRA_HOME", str(tmp_path))
    (tmp_path / "api-key").write_text("the-key\n")
    assert orchestra("list").code == 0


def test_a_traceback_only_when_asked_for(orchestra: Orchestra) -> None:
    assert "Traceback" in orchestra("-v", "show", "nothing").err


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["list", "--limit", "0"], ["priority", "t1", "11"]])
def test_wrong_usage_is_exit_code_2(orchestra: Orchestra, arguments: list[str]) -> None:
    assert orchestra(*arguments).code == exit_codes.USAGE


def test_an_unusable_setting_is_named(orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRA_PORT", "many")
    done = orchestra("list")
    assert done.code == exit_codes.USAGE
    assert "ORCHESTRA_PORT" in done.err
