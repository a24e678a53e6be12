"""Every endpoint of the customer's API document, in its order, with its request bodies: fields and codes must agree.

The document's ids are replaced by real tasks; its model is served by the scripted engine.
"""

from __future__ import annotations

import copy

import httpx
import pytest

from tests.acceptance.conftest import RunningStack
from tests.support.reference import Endpoint, differences, endpoints

REFERENCE = {endpoint.title: endpoint for endpoint in endpoints()}
# What the contract adds to the document's `GET /tasks/{task_id}`.
ADDED_TO_TASK = {"depends_on", "attempts", "flow_run_id", "flow_run_url"}
ADDED_TO_USAGE = {"load_time_seconds", "prompt_tokens", "output_tokens", "gpu_memory_used_gb"}


class Walk:
    """The tasks that the steps of the walk share."""

    completed: str
    running: str
    queued: str


@pytest.fixture(scope="module")
def walk(stack: RunningStack) -> Walk:
    """One completed, one running and one waiting task."""
    prompt = REFERENCE["Create a Task"].request["parameters"]["prompt"]
    walk = Walk()
    walk.completed = stack.submit("ollama-inference", {"model": "llama3.1:8b", "prompt": prompt})
    stack.wait_for(walk.completed)
    slow = {"endpoint": "generate", "contains": "Example prompt", "fault": "drip", "seconds": 30}
    httpx.post(f"{stack.ollama}/__script", json=slow).raise_for_status()
    walk.running = stack.submit("ollama-inference", {"model": "llama3.1:8b", "prompt": "Example prompt"})
    stack.wait_for(walk.running, "running")
    walk.queued = stack.submit(
        "git-script-execution",
        {"repo_url": "https://example.org/repo.git", "script_path": "run.py", "output_path": "out.txt"},
        priority=8,
        depends_on=[walk.running],
    )
    return walk


def _without(body: dict, names: set[str]) -> dict:
    return {name: value for name, value in body.items() if name not in names}


def create_a_task(stack: RunningStack, walk: Walk, reference: Endpoint) -> None:
    body = copy.deepcopy(reference.request)
    body["depends_on"] = [walk.completed, walk.running]
    answer = stack.api.post("/tasks", json=body)
    assert answer.status_code == 201
    assert differences(reference.response, answer.json()) == []
    assert answer.json() | {"id": "", "created_at": ""} == {
        "id": "",
        "status": "queued",
        "priority": body["priority"],
        "created_at": "",
        "template": body["template"],
        "parameters": body["parameters"],
        "depends_on": body["depends_on"],
    }


def list_tasks(stack: RunningStack, walk: Walk, reference: Endpoint) -> None:
    completed, queued = reference.response
    answer = stack.api.get("/tasks", params={"limit": 100, "offset": 0})
    assert answer.status_code == 200
    items = {item["id"]: item for item in answer.json()}
    assert differences(completed, items[walk.completed]) == []
    assert differences(queued, items[walk.queued]) == []
    filtered = stack.api.get("/tasks", params={"status": "queued", "template": "git-script-execution"}).json()
    assert [item["id"] for item in filtered] == [walk.queued]


def get_tasks_by_execution_status(stack: RunningStack, walk: Walk, reference: Endpoint) -> None:
    answer = stack.api.get("/tasks/status")
    assert answer.status_code == 200
    groups = answer.json()
    assert list(groups) == list(reference.response)
    for status, task_id in (("queued", walk.queued), ("running", walk.running), ("completed", walk.completed)):
        item = next(item for item in groups[status] if item["id"] == task_id)
        assert differences(reference.response[status][0], item) == []


def get_task(stack: RunningStack, walk: Walk, reference: Endpoint) -> None:
    answer = stack.api.get(f"/tasks/{walk.completed}")
    assert answer.status_code == 200
    task = answer.json()
    task["resource_usage"] = _without(task["resource_usage"], ADDED_TO_USAGE)
    assert differences(reference.response, _without(task, ADDED_TO_TASK)) == []
    assert task["result"] == {"output": "Qubits can be both."}
    assert task["resource_usage"]["model_name"] == "llama3.1:8b"
    assert task["resource_usage"]["memory_used_gb"] == pytest.approx(8.1)


def update_task_priority(stack: RunningStack, walk: Walk, reference: Endpoint) -> None:
    answer = stack.api.patch(f"/tasks/{walk.queued}/priority", params={"priority": 9})
    assert answer.status_code == 200
    assert differences(reference.response, answer.json()) == []
    assert answer.json() == {"id": walk.queued, "priority": 9, "status": "queued"}
    assert stack.api.patch(f"/tasks/{walk.completed}/priority", params={"priority": 9}).status_code == 409


def cancel_task(stack: RunningStack, walk: Walk, reference: Endpoint) -> None:
    answer = stack.api.delete(f"/tasks/{walk.queued}")
    assert (answer.status_code, answer.content) == (204, b"")
    stack.wait_for(walk.queued, "cancelled", timeout=10)
    answer = stack.api.delete(f"/tasks/{walk.running}")
    assert answer.status_code == 204
    stack.wait_for(walk.running, "cancelled", timeout=10)
    assert stack.api.delete(f"/tasks/{walk.completed}").status_code == 409


def list_templates(stack: RunningStack, walk: Walk, reference: Endpoint) -> None:
    answer = stack.api.get("/templates")
    assert answer.status_code == 200
    templates = {item["name"]: item for item in answer.json()}
    for example in reference.response:
        assert templates[example["name"]] == example


def get_template(stack: RunningStack, walk: Walk, reference: Endpoint) -> None:
    answer = stack.api.get("/templates/ollama-inference")
    assert answer.status_code == 200
    assert answer.json() == reference.response


def validate_template_parameters(stack: RunningStack, walk: Walk, reference: Endpoint) -> None:
    answer = stack.api.post("/templates/validate", params={"template_name": "ollama-inference"}, json=reference.request)
    assert answer.status_code == 200
    assert answer.json() == reference.response


STEPS = {
    "Create a Task": create_a_task,
    "List Tasks": list_tasks,
    "Get Tasks by Execution Status": get_tasks_by_execution_status,
    "Get Task": get_task,
    "Update Task Priority": update_task_priority,
    "Cancel Task": cancel_task,
    "List Templates": list_templates,
    "Get Template": get_template,
    "Validate Template Parameters": validate_template_parameters,
}


def test_every_endpoint_answers_as_the_document_says(stack: RunningStack, walk: Walk) -> None:
    for endpoint in endpoints():
        STEPS[endpoint.title](stack, walk, endpoint)


def test_the_document_has_the_nine_endpoints() -> None:
    assert [(e.method, e.path) for e in endpoints()] == [
        ("POST", "/tasks"),
        ("GET", "/tasks"),
        ("GET", "/tasks/status"),
        ("GET", "/tasks/{task_id}"),
        ("PATCH", "/tasks/{task_id}/priority"),
        ("DELETE", "/tasks/{task_id}"),
        ("GET", "/templates"),
        ("GET", "/templates/{template_name}"),
        ("POST", "/templates/validate"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/tasks/no-such-task", 404),
        ("GET", "/templates/no-such-template", 404),
        ("GET", "/tasks?limit=0", 422),
    ],
)
def test_errors_have_the_documents_format(stack: RunningStack, method: str, path: str, code: int) -> None:
    answer = stack.api.request(method, path)
    assert answer.status_code == code
    assert isinstance(answer.json()["detail"], str)


def test_without_a_key_the_answer_is_401(stack: RunningStack) -> None:
    answer = stack.api.get("/tasks", headers={"X-API-Key": ""})
    assert answer.status_code == 401
    assert isinstance(answer.json()["detail"], str)
