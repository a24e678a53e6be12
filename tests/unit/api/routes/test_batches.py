from __future__ import annotations

import json
import uuid
from typing import Any, ClassVar

import httpx
import pytest

from tests.support import reference
from tests.support.api_app import INFERENCE, ApiUnderTest, problem, running_api
from tests.unit.api.test_bad_input import REFUSED

BATCH = "/api/v1/tasks/batch"
NOBODY = str(uuid.UUID(int=7))


def task(name: str | None = None, *depends_on: str, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"template": "ollama-inference", "parameters": INFERENCE} | fields
    made |= {"name": name} if name is not None else {}
    return made | ({"depends_on": list(depends_on)} if depends_on else {})


async def post(api: ApiUnderTest, *tasks: Any, **headers: str) -> httpx.Response:
    return await api.client.post(BATCH, json={"tasks": list(tasks)}, headers=headers)


async def created(api: ApiUnderTest, *tasks: Any) -> dict[str, Any]:
    answer = await post(api, *tasks)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def read(api: ApiUnderTest, task_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await api.client.get(f"/api/v1/tasks/{task_id}")).json()
    return found


class TestTheDocument:
    async def test_its_examples_are_what_happens(self, api: ApiUnderTest) -> None:
        request, response = reference.examples("Create a Batch")
        answer = await api.client.post(BATCH, json=request)
        assert answer.status_code == 201, answer.text
        assert reference.differences(response, answer.json()) == []
        ids = answer.json()["tasks"]
        api.tasks.change(ids["draft"], status="completed", started_at=api.tasks.tick(), completed_at=api.tasks.tick())
        [example] = reference.examples("Get a Batch")
        found = (await api.client.get(answer.headers["location"])).json()
        assert reference.differences(example, found) == []
        assert (found["status"], found["counts"]) == (example["status"], example["counts"])

    async def test_its_reference_is_one(self, api: ApiUnderTest) -> None:
        [example] = reference.examples("Results as Parameters")
        first = (await api.submit())["id"]
        made = await api.submit(parameters=INFERENCE | {"prompt": example | {"$result": first}})
        assert made["depends_on"] == [first]


class TestCreateBatch:
    async def test_the_answer_has_the_ids_in_order_and_by_name(self, api: ApiUnderTest) -> None:
        answer = await post(api, task("b", "a"), task(), task("a"))
        assert answer.status_code == 201
        made = answer.json()
        assert list(made) == ["id", "created_at", "ids", "tasks"]
        assert made["tasks"] == {"b": made["ids"][0], "a": made["ids"][2]}
        assert answer.headers["location"] == f"/api/v1/batches/{made['id']}"
        assert (await api.client.get(answer.headers["location"])).json()["id"] == made["id"]
        assert (await read(api, made["tasks"]["b"]))["depends_on"] == [made["tasks"]["a"]]

    async def test_each_task_is_as_if_posted_alone(self, api: ApiUnderTest) -> None:
        outside = (await api.submit())["id"]
        fields = {"priority": 9, "on_dependency_failure": "run"}
        made = await created(api, task("a"), task("b", "a", outside, "a", **fields))
        found = await read(api, made["tasks"]["b"])
        assert found["depends_on"] == [made["tasks"]["a"], outside]
        assert {name: found[name] for name in fields} == fields
        assert (found["batch_id"], found["name"], found["parameters"]) == (made["id"], "b", INFERENCE)

    async def test_a_reference_is_a_dependency(self, api: ApiUnderTest) -> None:
        outside = (await api.submit())["id"]
        prompt = {"$result": "a", "path": "output"}
        parameters = INFERENCE | {"prompt": prompt, "system_prompt": {"$result": outside}}
        made = await created(api, task("b", parameters=parameters), task("a"), task("c", "a", parameters=parameters))
        for name in ("b", "c"):
            found = await read(api, made["tasks"][name])
            assert found["depends_on"] == [made["tasks"]["a"], outside]
            assert found["parameters"] == parameters

    async def test_all_or_none(self, api: ApiUnderTest) -> None:
        answer = await post(api, task("a"), task("b", "a"), task("c", NOBODY))
        assert problem(answer) == (404, "unknown_dependency")
        assert api.tasks.tasks == {}

    @pytest.mark.parametrize(
        ("tasks", "named"),
        [
            ([task("a", "b"), task("b", "c"), task("c", "a")], "a → b → c → a"),
            ([task("a", "a")], "a → a"),
            ([task("x"), task("a", "b", "x"), task("b", "a")], "a → b → a"),
            ([task("a", parameters=INFERENCE | {"prompt": {"$result": "b"}}), task("b", "a")], "a → b → a"),
            ([task("a", parameters=INFERENCE | {"prompt": {"$result": "a"}})], "a → a"),
        ],
    )
    async def test_a_circle_is_named_in_order(self, api: ApiUnderTest, tasks: list[Any], named: str) -> None:
        answer = await post(api, *tasks)
        assert problem(answer) == (422, "dependency_cycle")
        assert named in answer.json()["detail"]
        assert api.tasks.tasks == {}

    async def test_a_name_that_is_no_ones_is_said_with_the_task(self, api: ApiUnderTest) -> None:
        answer = await post(api, task("a"), task("b", "nobody"))
        assert problem(answer) == (404, "unknown_dependency")
        assert "tasks[1] ('b')" in answer.json()["detail"] and "'nobody'" in answer.json()["detail"]
        answer = await post(api, task(), task(parameters=INFERENCE | {"prompt": {"$result": "nobody"}}))
        assert problem(answer) == (404, "unknown_dependency")
        assert "tasks[1]: parameter 'prompt'" in answer.json()["detail"]

    async def test_a_failed_dependency_outside_is_a_conflict_unless_the_task_runs_anyway(
        self, api: ApiUnderTest
    ) -> None:
        outside = (await api.submit())["id"]
        api.tasks.change(outside, status="cancelled")
        answer = await post(api, task("a"), task("b", outside))
        assert problem(answer) == (409, "dependency_failed")
        assert "tasks[1] ('b')" in answer.json()["detail"]
        await created(api, task("b", outside, on_dependency_failure="run"))

    async def test_another_tenants_task_is_no_dependency(self, api: ApiUnderTest) -> None:
        outside = (await api.submit())["id"]
        api.tasks.tenants[outside] = "somebody else"
        assert problem(await post(api, task("a", outside))) == (404, "unknown_dependency")

    async def test_parameters_that_do_not_fit_are_named_with_their_task(self, api: ApiUnderTest) -> None:
        wrong = {"model": 5, "prompt": {"$result": "a", "key": 1}, "zeta": {"$result": "a"}}
        answer = await post(api, task("a"), task("b", parameters=wrong))
        assert problem(answer) == (400, "invalid_parameters")
        detail = answer.json()["detail"]
        assert detail.startswith("tasks[1] ('b'): ")
        assert all(f"{name}: " in detail for name in wrong)

    async def test_a_template_that_is_not_there_is_not_found(self, api: ApiUnderTest) -> None:
        answer = await post(api, task("a"), task("b", template="nope"))
        assert problem(answer) == (404, "not_found")
        assert "tasks[1] ('b')" in answer.json()["detail"]

    async def test_what_prefect_would_evaluate_is_refused(self, api: ApiUnderTest) -> None:
        options = {"x": {"__prefect_kind": "jinja", "template": "{{ 7 * 7 }}"}}
        program = task("a", template="every-type", parameters={"seconds": 1, "options": options})
        answer = await post(api, program)
        assert problem(answer) == (400, "invalid_parameters")
        assert api.tasks.tasks == {}

    async def test_a_name_twice_is_refused(self, api: ApiUnderTest) -> None:
        answer = await post(api, task("a"), task("b"), task("a"))
        assert problem(answer) == (422, "duplicate_name")
        assert "tasks[2]" in answer.json()["detail"] and "'a'" in answer.json()["detail"]

    @pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "\x7f", None, 5, NOBODY, ["a"]])
    async def test_a_name_that_is_none_is_refused(self, api: ApiUnderTest, name: Any) -> None:
        answer = await post(api, task() | {"name": name})
        assert problem(answer) == (422, "validation_error")

    @pytest.mark.parametrize("name", ["x" * 100, "ä b/c → 😀", "$result", "../..", "0"])
    async def test_a_name_may_be_any_line(self, api: ApiUnderTest, name: str) -> None:
        made = await created(api, task(name), task("other", name))
        assert made["tasks"][name] == made["ids"][0]
        assert (await read(api, made["ids"][1]))["depends_on"] == [made["ids"][0]]

    async def test_500_tasks_are_a_batch_and_501_are_not(self, api: ApiUnderTest) -> None:
        chain = [task(f"t{number}", *([f"t{number - 1}"] if number else [])) for number in range(500)]
        assert len((await created(api, *reversed(chain)))["ids"]) == 500
        answer = await post(api, *chain, task())
        assert problem(answer) == (422, "too_many_tasks")
        assert "500" in answer.json()["detail"]

    async def test_the_limit_is_a_setting(self, tmp_path: Any) -> None:
        async with running_api(tmp_path, max_batch_tasks=2) as api:
            await created(api, task(), task())
            assert problem(await post(api, task(), task(), task())) == (422, "too_many_tasks")

    async def test_too_many_dependencies_of_one_task_are_refused(self, api: ApiUnderTest) -> None:
        answer = await post(api, task("a", *(str(uuid.uuid4()) for _ in range(1001))))
        assert problem(answer) == (422, "too_many_dependencies")

    @pytest.mark.parametrize(
        "body", [b"[]", b"null", b"{}", b'{"tasks":[]}', b'{"tasks":null}', b'{"tasks":{}}', b'{"tasks":[[]]}']
    )
    async def test_a_body_that_is_no_batch_is_refused(self, api: ApiUnderTest, body: bytes) -> None:
        assert problem(await api.raw(body, BATCH)) == (422, "validation_error")

    async def test_an_unknown_field_is_refused_with_its_place(self, api: ApiUnderTest) -> None:
        answer = await post(api, task("a"), task("b", pirority=3))
        assert problem(answer) == (422, "validation_error")
        assert answer.json()["errors"][0]["loc"] == ["body", "tasks", 1, "pirority"]
        body = {"tasks": [task("a")], "more": 1}
        assert problem(await api.client.post(BATCH, json=body)) == (422, "validation_error")

    @pytest.mark.parametrize("name", [name for name in REFUSED if name != "nothing"])
    async def test_a_batch_is_refused_for_what_a_task_is(self, api: ApiUnderTest, name: str) -> None:
        body, status, code = REFUSED[name]
        answer = await api.raw(b'{"tasks":[' + json.dumps(task("a")).encode() + b"," + body + b"]}", BATCH)
        assert problem(answer) == (status, code)
        assert len(answer.content) < 5000
        await api.still_serves()
        assert api.tasks.tasks == {}


class TestIdempotencyKey:
    BODY: ClassVar[list[Any]] = [task("b", "a"), task(), task("a")]

    async def test_the_same_request_again_answers_the_same_batch(self, api: ApiUnderTest) -> None:
        first = await post(api, *self.BODY, **{"Idempotency-Key": "order-66"})
        reordered = [dict(reversed(item.items())) for item in self.BODY]
        again = await post(api, *reordered, **{"Idempotency-Key": "order-66"})
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["location"] == first.headers["location"]
        assert again.json() == first.json()
        assert len(api.tasks.tasks) == 3

    async def test_another_request_under_the_key_is_refused(self, api: ApiUnderTest) -> None:
        await post(api, *self.BODY, **{"Idempotency-Key": "order-66"})
        for other in (self.BODY[1:], list(reversed(self.BODY))):
            answer = await post(api, *other, **{"Idempotency-Key": "order-66"})
            assert problem(answer) == (422, "idempotency_mismatch")

    async def test_a_key_that_is_none_is_refused(self, api: ApiUnderTest) -> None:
        answer = await post(api, *self.BODY, **{"Idempotency-Key": "two words"})
        assert problem(answer) == (400, "invalid_idempotency_key")
        assert api.tasks.tasks == {}


class TestGetBatch:
    async def test_counts_and_tasks_are_in_the_order_of_the_request(self, api: ApiUnderTest) -> None:
        made = await created(api, task("c", "b", on_dependency_failure="run"), task("b", "a"), task("a"), task())
        ids = made["tasks"]
        error = {"type": "step_failed", "message": "broke", "step": "x"}
        api.tasks.change(ids["a"], status="failed", error=error, started_at=api.tasks.tick())
        api.tasks.change(ids["b"], status="cancelled")
        found = (await api.client.get(f"/api/v1/batches/{made['id']}")).json()
        assert list(found) == ["id", "created_at", "status", "counts", "tasks"]
        assert found["counts"] == {"queued": 2, "running": 0, "completed": 0, "failed": 1, "cancelled": 1}
        assert [member["id"] for member in found["tasks"]] == made["ids"]
        assert [member.get("name") for member in found["tasks"]] == ["c", "b", "a", None]
        first, _, third, fourth = found["tasks"]
        assert first["depends_on"] == [ids["b"]] and first["on_dependency_failure"] == "run"
        assert third["error"] == error and third["started_at"]
        assert fourth == {
            "id": made["ids"][3],
            "status": "queued",
            "priority": 5,
            "created_at": made["created_at"],
            "template": "ollama-inference",
            "depends_on": [],
        }

    @pytest.mark.parametrize(
        ("statuses", "status"),
        [
            (("queued", "queued"), "queued"),
            (("queued", "completed"), "running"),
            (("running", "failed"), "running"),
            (("completed", "completed"), "completed"),
            (("completed", "cancelled"), "cancelled"),
            (("cancelled", "failed"), "failed"),
        ],
    )
    async def test_the_status_of_a_batch(self, api: ApiUnderTest, statuses: tuple[str, str], status: str) -> None:
        made = await created(api, task(), task())
        for task_id, word in zip(made["ids"], statuses, strict=True):
            api.tasks.change(task_id, status=word)
        assert (await api.client.get(f"/api/v1/batches/{made['id']}")).json()["status"] == status

    @pytest.mark.parametrize("batch_id", [NOBODY, "1", "%00", "x" * 5000, NOBODY.upper()])
    async def test_an_id_that_is_no_batchs_is_not_found(self, api: ApiUnderTest, batch_id: str) -> None:
        for method in ("GET", "DELETE"):
            answer = await api.client.request(method, f"/api/v1/batches/{batch_id}")
            assert problem(answer) == (404, "not_found")

    async def test_another_tenants_batch_is_not_found(self, api: ApiUnderTest) -> None:
        made = await created(api, task())
        api.core.batches.give_away(made["id"], "somebody else")
        for method in ("GET", "DELETE"):
            answer = await api.client.request(method, f"/api/v1/batches/{made['id']}")
            assert problem(answer) == (404, "not_found")
        assert api.tasks.tasks[made["ids"][0]].status == "queued"


class TestCancelBatch:
    async def test_what_has_not_ended_is_cancelled_and_again_is_fine(self, api: ApiUnderTest) -> None:
        made = await created(api, task(), task(), task())
        api.tasks.change(made["ids"][0], status="completed")
        api.tasks.change(made["ids"][1], status="running")
        for _ in range(2):
            answer = await api.client.delete(f"/api/v1/batches/{made['id']}")
            assert (answer.status_code, answer.content) == (204, b"")
        statuses = [api.tasks.tasks[task_id].status for task_id in made["ids"]]
        assert statuses == ["completed", "cancelled", "cancelled"]


class TestReferencesOfSingleTasks:
    async def test_a_reference_is_added_to_what_the_task_depends_on(self, api: ApiUnderTest) -> None:
        first, second = [(await api.submit())["id"] for _ in range(2)]
        parameters = INFERENCE | {"prompt": {"$result": first}, "system_prompt": {"$result": first, "path": "a.0"}}
        made = await api.submit(depends_on=[second], parameters=parameters)
        assert made["depends_on"] == [second, first]
        assert made["parameters"] == parameters

    async def test_a_task_that_nobody_has_is_named_with_the_parameter(self, api: ApiUnderTest) -> None:
        for unknown in ("draft", NOBODY):
            body = task(parameters=INFERENCE | {"prompt": {"$result": unknown}})
            answer = await api.client.post("/api/v1/tasks", json=body)
            assert problem(answer) == (404, "unknown_dependency")
            assert unknown in answer.json()["detail"]

    async def test_a_malformed_reference_is_a_wrong_parameter(self, api: ApiUnderTest) -> None:
        parameters = {"seconds": 1, "options": {"a": [{"$result": NOBODY, "paths": "x"}]}}
        answer = await api.client.post("/api/v1/tasks", json={"template": "every-type", "parameters": parameters})
        assert problem(answer) == (400, "invalid_parameters")
        assert "options: a reference has the keys" in answer.json()["detail"]

    async def test_validation_says_what_a_submission_would(self, api: ApiUnderTest) -> None:
        url = "/api/v1/templates/validate?template_name=ollama-inference"
        good = await api.client.post(url, json={"model": "m", "prompt": {"$result": "draft"}})
        assert good.json()["valid"] is True
        bad = await api.client.post(url, json={"prompt": {"$result": "draft", "x": 1}})
        assert (bad.json()["missing_parameters"], bad.json()["invalid_parameters"]) == (["model"], ["prompt"])

    async def test_a_single_task_has_no_name(self, api: ApiUnderTest) -> None:
        answer = await api.client.post(
            "/api/v1/tasks", content=json.dumps(task("a")), headers={"content-type": "application/json"}
        )
        assert problem(answer) == (422, "validation_error")
