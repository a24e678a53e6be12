from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, ClassVar

import pytest

from ai_task_orchestra.errors import IdempotencyBusyError
from api.views import AttemptView, LogLine
from tests.support import reference
from tests.support.api_app import INFERENCE, ApiUnderTest, problem

EXAMPLES = {endpoint.title: endpoint for endpoint in reference.endpoints()}
NOBODY = str(uuid.UUID(int=7))


class TestCreateTask:
    async def test_the_answer_is_the_references_and_echoes_the_request(self, api: ApiUnderTest) -> None:
        parent = await api.submit()
        example = EXAMPLES["Create a Task"]
        answer = await api.client.post("/api/v1/tasks", json=example.request | {"depends_on": [parent["id"]]})
        assert answer.status_code == 201
        task = answer.json()
        assert reference.differences(example.response, task) == []
        assert task["depends_on"] == [parent["id"]]
        assert task["parameters"] == example.request["parameters"]
        assert task["status"] == "queued"

    async def test_location_is_where_the_task_can_be_read(self, api: ApiUnderTest) -> None:
        body = {"template": "ollama-inference", "parameters": INFERENCE}
        answer = await api.client.post("/api/v1/tasks", json=body)
        found = await api.client.get(answer.headers["location"])
        assert found.json()["id"] == answer.json()["id"]

    async def test_priority_is_5_unless_given(self, api: ApiUnderTest) -> None:
        assert (await api.submit())["priority"] == 5
        assert (await api.submit(priority=10))["priority"] == 10

    async def test_repeated_dependencies_count_once(self, api: ApiUnderTest) -> None:
        parent = (await api.submit())["id"]
        assert (await api.submit(depends_on=[parent] * 1500))["depends_on"] == [parent]

    async def test_too_many_distinct_dependencies_are_refused(self, api: ApiUnderTest) -> None:
        ids = [str(uuid.uuid4()) for _ in range(1001)]
        body = {"template": "ollama-inference", "parameters": INFERENCE, "depends_on": ids}
        answer = await api.client.post("/api/v1/tasks", json=body)
        assert problem(answer) == (422, "too_many_dependencies")

    @pytest.mark.parametrize("unknown", [NOBODY, "task-id-1", "", "x" * 5000, NOBODY.upper()])
    async def test_an_unknown_dependency_is_named(self, api: ApiUnderTest, unknown: str) -> None:
        body = {"template": "ollama-inference", "parameters": INFERENCE, "depends_on": [unknown]}
        answer = await api.client.post("/api/v1/tasks", json=body)
        assert problem(answer) == (404, "unknown_dependency")
        assert unknown[:80] in answer.json()["detail"]
        assert len(answer.json()["detail"]) < 200

    async def test_a_failed_dependency_is_a_conflict_unless_the_task_runs_anyway(self, api: ApiUnderTest) -> None:
        parent = (await api.submit())["id"]
        api.tasks.change(parent, status="failed")
        body = {"template": "ollama-inference", "parameters": INFERENCE, "depends_on": [parent]}
        assert problem(await api.client.post("/api/v1/tasks", json=body)) == (409, "dependency_failed")
        answer = await api.client.post("/api/v1/tasks", json=body | {"on_dependency_failure": "run"})
        assert answer.status_code == 201
        assert answer.json()["on_dependency_failure"] == "run"

    async def test_an_unknown_template_is_not_found(self, api: ApiUnderTest) -> None:
        answer = await api.client.post("/api/v1/tasks", json={"template": "nope", "parameters": {}})
        assert problem(answer) == (404, "not_found")

    async def test_each_wrong_parameter_is_named_in_order(self, api: ApiUnderTest) -> None:
        wrong = {"zeta": 1, "model": 5, "system_prompt": "secret-value"}
        answer = await api.client.post("/api/v1/tasks", json={"template": "ollama-inference", "parameters": wrong})
        assert problem(answer) == (400, "invalid_parameters")
        detail = answer.json()["detail"]
        assert 0 < detail.index("model:") < detail.index("prompt:") < detail.index("zeta:")
        assert "secret-value" not in answer.text

    async def test_thousands_of_wrong_parameters_give_a_readable_answer(self, api: ApiUnderTest) -> None:
        wrong = {f"{number:05}-{'x' * 300}": 0 for number in range(800)}
        answer = await api.client.post("/api/v1/tasks", json={"template": "ollama-inference", "parameters": wrong})
        assert problem(answer) == (400, "invalid_parameters")
        assert len(answer.content) < 40_000

    async def test_parameters_over_the_limit_are_refused(self, api: ApiUnderTest) -> None:
        big = INFERENCE | {"prompt": "ä" * (256 * 1024)}
        answer = await api.client.post("/api/v1/tasks", json={"template": "ollama-inference", "parameters": big})
        assert problem(answer) == (400, "parameters_too_large")

    async def test_null_inside_parameters_stays(self, api: ApiUnderTest) -> None:
        parameters = {"seconds": 1, "options": {"nothing": None, "list": [None]}}
        task = await api.submit(template="every-type", parameters=parameters)
        assert task["parameters"] == parameters


class TestIdempotencyKey:
    BODY: ClassVar[dict[str, Any]] = {"template": "ollama-inference", "parameters": INFERENCE, "priority": 3}

    async def test_the_same_request_again_answers_the_same_task_as_it_is_now(self, api: ApiUnderTest) -> None:
        headers = {"Idempotency-Key": "order-66"}
        first = await api.client.post("/api/v1/tasks", json=self.BODY, headers=headers)
        api.tasks.change(first.json()["id"], status="running")
        reordered = dict(reversed(self.BODY.items())) | {"parameters": dict(reversed(INFERENCE.items()))}
        again = await api.client.post("/api/v1/tasks", json=reordered, headers=headers)
        assert (first.status_code, again.status_code) == (201, 200)
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["location"] == first.headers["location"]
        assert again.json() == first.json() | {"status": "running"}

    async def test_another_request_under_the_key_is_refused(self, api: ApiUnderTest) -> None:
        headers = {"Idempotency-Key": "order-66"}
        await api.client.post("/api/v1/tasks", json=self.BODY, headers=headers)
        answer = await api.client.post("/api/v1/tasks", json=self.BODY | {"priority": 4}, headers=headers)
        assert problem(answer) == (422, "idempotency_mismatch")

    async def test_while_the_first_is_being_written_the_second_conflicts(self, api: ApiUnderTest) -> None:
        api.tasks.broken = IdempotencyBusyError()
        answer = await api.client.post("/api/v1/tasks", json=self.BODY, headers={"Idempotency-Key": "k"})
        assert problem(answer) == (409, "idempotency_busy")

    async def test_without_the_header_equal_requests_are_two_tasks(self, api: ApiUnderTest) -> None:
        assert (await api.submit())["id"] != (await api.submit())["id"]

    @pytest.mark.parametrize("key", ["", "x" * 256, "two words", "\x7f", "tab\tin", "ä".encode("latin-1"), b"\x01"])
    async def test_a_key_that_is_none_is_refused(self, api: ApiUnderTest, key: str | bytes) -> None:
        value = key if isinstance(key, bytes) else key.encode("ascii")
        answer = await api.client.post("/api/v1/tasks", json=self.BODY, headers={b"Idempotency-Key": value})
        assert problem(answer) == (400, "invalid_idempotency_key")
        assert api.tasks.tasks == {}

    async def test_two_keys_are_refused(self, api: ApiUnderTest) -> None:
        headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
        answer = await api.client.post("/api/v1/tasks", json=self.BODY, headers=headers)
        assert problem(answer) == (400, "invalid_idempotency_key")


class TestListTasks:
    async def test_items_are_the_references_newest_first(self, api: ApiUnderTest) -> None:
        older, newer = (await api.submit())["id"], (await api.submit())["id"]
        done = datetime(2025, 8, 9, 12, 45, tzinfo=timezone(timedelta(hours=2)))
        api.tasks.change(newer, status="completed", started_at=done, completed_at=done, result={"output": "x"})
        answer = await api.client.get("/api/v1/tasks")
        assert reference.differences(EXAMPLES["List Tasks"].response, answer.json()) == []
        assert [task["id"] for task in answer.json()] == [newer, older]
        assert answer.json()[0]["completed_at"] == "2025-08-09T10:45:00.000000Z"
        assert answer.headers["x-total-count"] == "2"

    async def test_filters_combine_and_the_total_counts_what_they_leave(self, api: ApiUnderTest) -> None:
        wanted = [(await api.submit())["id"] for _ in range(3)]
        await api.submit(template="every-type", parameters={"seconds": 1})
        api.tasks.change(wanted[0], status="failed")
        query: dict[str, Any] = {"status": "queued", "template": "ollama-inference", "limit": 1, "offset": 1}
        answer = await api.client.get("/api/v1/tasks", params=query)
        assert [task["id"] for task in answer.json()] == [wanted[1]]
        assert answer.headers["x-total-count"] == "2"

    async def test_a_template_nobody_has_gives_an_empty_list(self, api: ApiUnderTest) -> None:
        await api.submit()
        answer = await api.client.get("/api/v1/tasks", params={"template": "' OR 1=1--"})
        assert (answer.status_code, answer.json()) == (200, [])

    async def test_limits_reach_from_1_to_1000(self, api: ApiUnderTest) -> None:
        for query in ({"limit": 1}, {"limit": 1000}, {"offset": 10**6}):
            assert (await api.client.get("/api/v1/tasks", params=query)).status_code == 200

    @pytest.mark.parametrize(
        "query",
        [
            "limit=0",
            "limit=-1",
            "limit=1001",
            "limit=1000000000000",
            "limit=9223372036854775808",
            "limit=" + "9" * 5000,
            "limit=inf",
            "limit=5.0",
            "limit=1_0",
            "limit=%201",
            "limit=",
            "limit=true",
            "limit=%D9%A5",
            "offset=-1",
            "offset=9223372036854775808",
            "offset=NaN",
            "status=done",
            "status=",
            "status=QUEUED",
            "status=%00",
            "template=%00",
        ],
    )
    async def test_a_wrong_query_is_refused_without_repeating_it(self, api: ApiUnderTest, query: str) -> None:
        answer = await api.client.get(f"/api/v1/tasks?{query}")
        assert problem(answer) == (422, "validation_error")
        assert all(error.keys() == {"loc", "msg", "type"} for error in answer.json()["errors"])
        assert "99999" not in answer.text
        await api.still_serves()


class TestTasksByStatus:
    async def test_without_tasks_all_five_groups_are_there(self, api: ApiUnderTest) -> None:
        answer = await api.client.get("/api/v1/tasks/status")
        assert answer.json() == {name: [] for name in ("queued", "running", "completed", "failed", "cancelled")}

    async def test_groups_and_items_are_the_references(self, api: ApiUnderTest) -> None:
        now = datetime(2025, 8, 9, 11, tzinfo=UTC)
        done, running, _ = [(await api.submit())["id"] for _ in range(3)]
        api.tasks.change(done, status="completed", started_at=now, completed_at=now)
        api.tasks.change(running, status="running", started_at=now)
        answer = await api.client.get("/api/v1/tasks/status")
        assert reference.differences(EXAMPLES["Get Tasks by Execution Status"].response, answer.json()) == []

    async def test_limit_bounds_each_group(self, api: ApiUnderTest) -> None:
        ids = [(await api.submit())["id"] for _ in range(3)]
        answer = await api.client.get("/api/v1/tasks/status", params={"limit": 2})
        assert [task["id"] for task in answer.json()["queued"]] == ids[:0:-1]
        assert problem(await api.client.get("/api/v1/tasks/status?limit=0")) == (422, "validation_error")


class TestGetTask:
    async def test_a_completed_task_shows_what_the_reference_shows(self, api: ApiUnderTest) -> None:
        task_id = (await api.submit())["id"]
        now = datetime(2025, 8, 9, 11, tzinfo=UTC)
        api.tasks.change(
            task_id,
            status="completed",
            started_at=now,
            completed_at=now,
            result={"output": "text", "nothing": None},
            resource_usage={"model_name": "m", "inference_time_seconds": 1.5, "memory_used_gb": 8.1},
        )
        task = (await api.client.get(f"/api/v1/tasks/{task_id}")).json()
        assert task.pop("depends_on") == []
        assert task.pop("attempts") == []
        assert task["result"].pop("nothing") is None
        assert reference.differences(EXAMPLES["Get Task"].response, task) == []

    async def test_what_a_queued_task_does_not_have_yet_is_absent(self, api: ApiUnderTest) -> None:
        created = await api.submit()
        task = (await api.client.get(f"/api/v1/tasks/{created['id']}")).json()
        assert task == created | {"attempts": []}

    async def test_attempts_show_when_where_and_how_they_ended(self, api: ApiUnderTest) -> None:
        task_id = (await api.submit())["id"]
        now = datetime(2025, 8, 9, 11, tzinfo=UTC)
        crashed = AttemptView(number=1, worker="gpu-1", started=now, ended=now, outcome="crashed")
        running = AttemptView(number=2, worker=None, started=now, ended=None, outcome=None)
        api.tasks.change(task_id, attempts=[crashed, running])
        when = "2025-08-09T11:00:00.000000Z"
        assert (await api.client.get(f"/api/v1/tasks/{task_id}")).json()["attempts"] == [
            {"number": 1, "worker": "gpu-1", "started": when, "ended": when, "outcome": "crashed"},
            {"number": 2, "started": when},
        ]

    async def test_error_and_run_of_a_failed_task_are_shown(self, api: ApiUnderTest) -> None:
        task_id = (await api.submit())["id"]
        error = {"type": "model_not_found", "message": "no model 'm'", "step": "ollama_generate"}
        run = {"flow_run_id": str(uuid.uuid4()), "flow_run_url": "http://127.0.0.1:4200/runs/flow-run/x"}
        api.tasks.change(task_id, status="failed", error=error, **run)
        task = (await api.client.get(f"/api/v1/tasks/{task_id}")).json()
        assert task["error"] == error
        assert {name: task[name] for name in run} == run

    @pytest.mark.parametrize(
        "task_id", [NOBODY, "task-uuid", "1", str(2**63), "%00", "%ff", "..%2f..", "x" * 9000, "{}", "%F0%9F%98%80"]
    )
    async def test_an_id_that_is_no_tasks_is_not_found(self, api: ApiUnderTest, task_id: str) -> None:
        for method, path in (("GET", ""), ("DELETE", ""), ("PATCH", "/priority?priority=5"), ("GET", "/logs")):
            answer = await api.client.request(method, f"/api/v1/tasks/{task_id}{path}")
            assert problem(answer) == (404, "not_found")

    async def test_another_tenants_task_is_not_found(self, api: ApiUnderTest) -> None:
        task_id = (await api.submit())["id"]
        api.tasks.tenants[task_id] = "somebody else"
        assert problem(await api.client.get(f"/api/v1/tasks/{task_id}")) == (404, "not_found")


class TestUpdatePriority:
    async def test_the_answer_is_the_references(self, api: ApiUnderTest) -> None:
        task_id = (await api.submit())["id"]
        answer = await api.client.patch(f"/api/v1/tasks/{task_id}/priority?priority=8")
        assert (answer.status_code, answer.json()) == (200, {"id": task_id, "priority": 8, "status": "queued"})
        assert reference.differences(EXAMPLES["Update Task Priority"].response, answer.json()) == []

    @pytest.mark.parametrize("status", ["running", "completed", "failed", "cancelled"])
    async def test_only_queued_tasks_have_one_to_change(self, api: ApiUnderTest, status: str) -> None:
        task_id = (await api.submit())["id"]
        api.tasks.change(task_id, status=status)
        assert problem(await api.client.patch(f"/api/v1/tasks/{task_id}/priority?priority=8")) == (409, "conflict")

    @pytest.mark.parametrize("value", ["0", "11", "-1", "5.5", "5.0", "true", "", "%00", "1e1", "null", "9" * 400])
    async def test_a_priority_that_is_none_is_refused(self, api: ApiUnderTest, value: str) -> None:
        task_id = (await api.submit())["id"]
        answer = await api.client.patch(f"/api/v1/tasks/{task_id}/priority?priority={value}")
        assert problem(answer) == (422, "validation_error")
        assert api.tasks.tasks[task_id].priority == 5

    async def test_the_priority_must_be_given(self, api: ApiUnderTest) -> None:
        task_id = (await api.submit())["id"]
        assert problem(await api.client.patch(f"/api/v1/tasks/{task_id}/priority")) == (422, "validation_error")


class TestCancelTask:
    async def test_the_answer_is_empty_and_the_task_is_cancelled(self, api: ApiUnderTest) -> None:
        task_id = (await api.submit())["id"]
        answer = await api.client.delete(f"/api/v1/tasks/{task_id}")
        assert (answer.status_code, answer.content) == (204, b"")
        assert api.tasks.tasks[task_id].status == "cancelled"

    async def test_cancelling_again_is_fine(self, api: ApiUnderTest) -> None:
        task_id = (await api.submit())["id"]
        answers = [await api.client.delete(f"/api/v1/tasks/{task_id}") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [204, 204]

    @pytest.mark.parametrize("status", ["completed", "failed"])
    async def test_what_has_ended_can_not_be_cancelled(self, api: ApiUnderTest, status: str) -> None:
        task_id = (await api.submit())["id"]
        api.tasks.change(task_id, status=status)
        assert problem(await api.client.delete(f"/api/v1/tasks/{task_id}")) == (409, "conflict")


class TestTaskLogs:
    async def test_lines_have_time_level_step_and_message(self, api: ApiUnderTest) -> None:
        task_id = (await api.submit())["id"]
        now = datetime(2025, 8, 9, 11, tzinfo=UTC)
        api.tasks.lines[task_id] = [LogLine(now, "INFO", None, "begun"), LogLine(now, "ERROR", "git", "no such branch")]
        lines = (await api.client.get(f"/api/v1/tasks/{task_id}/logs")).json()
        assert lines == [
            {"timestamp": "2025-08-09T11:00:00.000000Z", "level": "INFO", "message": "begun"},
            {"timestamp": "2025-08-09T11:00:00.000000Z", "level": "ERROR", "step": "git", "message": "no such branch"},
        ]
        second = await api.client.get(f"/api/v1/tasks/{task_id}/logs?limit=1&offset=1")
        assert second.json() == lines[1:]
