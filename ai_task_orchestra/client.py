"""A client of the REST API, as typed as its answers.

    async with OrchestraClient("http://127.0.0.1:8000", key) as client:
        task = await client.submit("ollama-inference", {"model": "smollm2:135m", "prompt": "Hello"})
        task = await client.wait(task["id"])

A field without a value is absent, as in the API's answers; times are RFC 3339 strings.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, NotRequired, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from ai_task_orchestra import __version__
from ai_task_orchestra.errors import (
    ConflictError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    OrchestraError,
    RefusedError,
    UnreachableError,
)
from ai_task_orchestra.protocol import DEFAULT_PRIORITY

Status = Literal["queued", "running", "completed", "failed", "cancelled"]
FINAL: Final[frozenset[str]] = frozenset({"completed", "failed", "cancelled"})
# An answer takes milliseconds; a server that is starting or under load may take longer.
TIMEOUT_SECONDS: Final = 30.0
# `wait()` asks this often at first and, the longer it takes, less often.
FIRST_POLL_SECONDS: Final = 0.1
SLOWEST_POLL_SECONDS: Final = 2.0
LOG_PAGE: Final = 1000


class TaskError(TypedDict):
    """Why a task failed or was cancelled. `type` is a stable word."""

    type: str
    message: str
    step: NotRequired[str]


class TaskSummary(TypedDict):
    """A task as in a list."""

    id: str
    status: Status
    priority: int
    created_at: str
    started_at: NotRequired[str]
    completed_at: NotRequired[str]
    template: str


class TaskDetail(TaskSummary):
    """A task with all that is known about it."""

    parameters: dict[str, Any]
    depends_on: list[str]
    on_dependency_failure: NotRequired[Literal["run"]]
    result: NotRequired[dict[str, Any]]
    error: NotRequired[TaskError]
    resource_usage: NotRequired[dict[str, Any]]
    attempts: NotRequired[list[dict[str, Any]]]
    flow_run_id: NotRequired[str]
    flow_run_url: NotRequired[str]


class BatchReceipt(TypedDict):
    """A batch just handed in: ids in the order of its tasks, and by name."""

    id: str
    created_at: str
    ids: list[str]
    tasks: dict[str, str]


class BatchMember(TaskSummary):
    """A task of a batch."""

    name: NotRequired[str]
    depends_on: list[str]
    on_dependency_failure: NotRequired[Literal["run"]]
    error: NotRequired[TaskError]


class Batch(TypedDict):
    """A batch: its tasks in the order they were handed in, and how many have each status."""

    id: str
    created_at: str
    status: Status
    counts: dict[str, int]
    tasks: list[BatchMember]


class PriorityChange(TypedDict):
    """The answer to a change of priority."""

    id: str
    priority: int
    status: Status


class LogLine(TypedDict):
    """One line of a task's log."""

    timestamp: str
    level: str
    step: NotRequired[str]
    message: str


class Parameter(TypedDict):
    """A parameter of a template."""

    name: str
    type: Literal["string", "integer", "number", "boolean", "array", "object"]
    required: bool
    description: str
    default: NotRequired[Any]
    enum: NotRequired[list[Any]]
    minimum: NotRequired[float]
    maximum: NotRequired[float]
    pattern: NotRequired[str]


class Template(TypedDict):
    """A template; `steps` only when asked for by name."""

    name: str
    description: str
    parameters: list[Parameter]
    steps: NotRequired[list[dict[str, Any]]]


class Validation(TypedDict):
    """Whether parameters fit a template."""

    valid: bool
    missing_parameters: list[str]
    invalid_parameters: list[str]
    errors: NotRequired[dict[str, str]]


_Watched = TypeVar("_Watched", TaskDetail, Batch)


class OrchestraClient:
    """The REST API at `url` (without `/api/v1`), with an API key.

    Every method raises:
        UnreachableError: nobody answers, or the server fails.
        RefusedError: the key is missing, wrong, or may not do this; a LimitError: not now.
        NotFoundError: there is no such task or template.
        ConflictError: the task's present state does not allow this.
        InvalidRequestError: the API does not accept the request; the message says why.
    """

    def __init__(self, url: str, key: str | None, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"User-Agent": f"ai-task-orchestra/{__version__}"}
        if key:
            headers["X-API-Key"] = key
        self._http = httpx.AsyncClient(
            base_url=f"{self.url}/api/v1", headers=headers, timeout=TIMEOUT_SECONDS, transport=transport
        )

    async def __aenter__(self) -> OrchestraClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def submit(
        self,
        template: str,
        parameters: Mapping[str, Any],
        *,
        priority: int = DEFAULT_PRIORITY,
        depends_on: Sequence[str] = (),
        on_dependency_failure: Literal["cancel", "run"] = "cancel",
        idempotency_key: str | None = None,
    ) -> TaskDetail:
        """Hand in a task; it is stored when this returns."""
        body: dict[str, Any] = {
            "template": template,
            "parameters": dict(parameters),
            "priority": priority,
            "depends_on": list(depends_on),
        }
        if on_dependency_failure != "cancel":
            body["on_dependency_failure"] = on_dependency_failure
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        answer: TaskDetail = await self._json("POST", "/tasks", json=body, headers=headers)
        return answer

    async def get(self, task_id: str) -> TaskDetail:
        """One task."""
        answer: TaskDetail = await self._json("GET", f"/tasks/{_segment(task_id)}")
        return answer

    async def tasks(
        self, *, status: str | None = None, template: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[TaskSummary]:
        """Tasks, newest first."""
        given = {"status": status, "template": template, "limit": limit, "offset": offset}
        query = {name: value for name, value in given.items() if value is not None}
        answer: list[TaskSummary] = await self._json("GET", "/tasks", params=query)
        return answer

    async def by_status(self, *, limit: int = 100) -> dict[str, list[TaskSummary]]:
        """Tasks in the five groups of their status, newest first, at most `limit` in each."""
        answer: dict[str, list[TaskSummary]] = await self._json("GET", "/tasks/status", params={"limit": limit})
        return answer

    async def change_priority(self, task_id: str, priority: int) -> PriorityChange:
        """Move a queued task; 10 is the most urgent."""
        answer: PriorityChange = await self._json(
            "PATCH", f"/tasks/{_segment(task_id)}/priority", params={"priority": priority}
        )
        return answer

    async def cancel(self, task_id: str) -> None:
        """Cancel a task that has not ended; it is shown as cancelled once its work has stopped."""
        await self._request("DELETE", f"/tasks/{_segment(task_id)}")

    async def submit_batch(
        self, tasks: Sequence[Mapping[str, Any]], *, idempotency_key: str | None = None
    ) -> BatchReceipt:
        """Hand in many tasks, all or none; each is a body of `submit`, with a name that others may use."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        body = {"tasks": [dict(task) for task in tasks]}
        answer: BatchReceipt = await self._json("POST", "/tasks/batch", json=body, headers=headers)
        return answer

    async def batch(self, batch_id: str) -> Batch:
        """One batch with its tasks."""
        answer: Batch = await self._json("GET", f"/batches/{_segment(batch_id)}")
        return answer

    async def cancel_batch(self, batch_id: str) -> None:
        """Cancel every task of a batch that has not ended."""
        await self._request("DELETE", f"/batches/{_segment(batch_id)}")

    async def logs(self, task_id: str, *, limit: int = LOG_PAGE, offset: int = 0) -> list[LogLine]:
        """The log lines of a task, oldest first."""
        answer: list[LogLine] = await self._json(
            "GET", f"/tasks/{_segment(task_id)}/logs", params={"limit": limit, "offset": offset}
        )
        return answer

    async def templates(self) -> list[Template]:
        """All templates, sorted by name."""
        answer: list[Template] = await self._json("GET", "/templates")
        return answer

    async def template(self, name: str) -> Template:
        """One template with its steps."""
        answer: Template = await self._json("GET", f"/templates/{_segment(name)}")
        return answer

    async def validate(self, template: str, parameters: Mapping[str, Any]) -> Validation:
        """Whether the parameters fit, without running anything."""
        answer: Validation = await self._json(
            "POST", "/templates/validate", params={"template_name": template}, json=dict(parameters)
        )
        return answer

    async def wait(
        self,
        task_id: str,
        *,
        timeout_seconds: float | None = None,
        changed: Callable[[TaskDetail], None] | None = None,
    ) -> TaskDetail:
        """The task once it is completed, failed or cancelled. `changed` is called with each new status.

        Raises:
            TimeoutError: it is not within `timeout_seconds`.
        """
        return await _until_final(f"task {task_id}", lambda: self.get(task_id), timeout_seconds, changed)

    async def wait_batch(
        self, batch_id: str, *, timeout_seconds: float | None = None, changed: Callable[[Batch], None] | None = None
    ) -> Batch:
        """The batch once all its tasks have ended. `changed` is called with each new status.

        Raises:
            TimeoutError: they have not within `timeout_seconds`.
        """
        return await _until_final(f"batch {batch_id}", lambda: self.batch(batch_id), timeout_seconds, changed)

    async def _json(self, method: str, path: str, **options: Any) -> Any:
        answer = await self._request(method, path, **options)
        try:
            return answer.json()
        except ValueError as exc:
            raise UnreachableError(f"{self.url} does not answer like this API: no JSON in its answer") from exc

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, **options)
        except (httpx.TransportError, httpx.InvalidURL) as exc:
            reason = str(exc) or type(exc).__name__
            raise UnreachableError(f"no answer from {self.url}: {reason}") from exc
        if answer.is_success:
            return answer
        raise _error(answer, self.url)


async def _until_final(
    what: str,
    look: Callable[[], Awaitable[_Watched]],
    timeout_seconds: float | None,
    changed: Callable[[_Watched], None] | None,
) -> _Watched:
    """Look until the status is final, less often the longer it takes."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    pause, last = FIRST_POLL_SECONDS, ""
    while True:
        found = await look()
        if found["status"] != last and changed is not None:
            changed(found)
        last = found["status"]
        if last in FINAL:
            return found
        if deadline is not None and time.monotonic() + pause > deadline:
            raise TimeoutError(f"{what} is still {last} after {timeout_seconds:g} s")
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, SLOWEST_POLL_SECONDS)


def _segment(text: str) -> str:
    """One segment of a path, whatever `text` is."""
    return quote(text, safe="") or "%20"


def _error(answer: httpx.Response, url: str) -> OrchestraError:
    """The error that an answer stands for."""
    text = _detail(answer)
    code = answer.status_code
    if code == 429:
        return LimitError(text)
    if code in (401, 403):
        return RefusedError(text)
    if code == 404:
        return NotFoundError(text)
    if code == 409:
        return ConflictError(text)
    if 400 <= code < 500:
        return InvalidRequestError(text)
    return UnreachableError(f"{url} answers {code}: {text}")


def _detail(answer: httpx.Response) -> str:
    """The sentence in an error's body, with the places that validation names."""
    try:
        body = answer.json()
        text = str(body["detail"])
        problems = [f"{'.'.join(str(part) for part in p['loc'])}: {p['msg']}" for p in body.get("errors", ())]
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer.reason_phrase or "an answer without words"
    return "; ".join([text, *problems])
