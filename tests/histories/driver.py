"""Carries a plan out as a client of the REST API, and writes down what it asked and what it was told.

An answer says yes (2xx), no (4xx) or, after a broken connection, a time-out or a 5xx, that the outcome is unknown. A
request with an `Idempotency-Key`, and a cancellation, are then repeated until the outcome is known, as a careful
client does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import httpx
import psutil

from tests.histories.faults import Faults
from tests.histories.plan import Batch, Cancel, Change, Fault, Look, Operation, Plan, Post
from tests.histories.stack import HistoryStack

FINAL: Final = ("completed", "failed", "cancelled")
#: How long an operation whose outcome is unknown is repeated.
PATIENCE_SECONDS: Final = 120.0
PAUSE_SECONDS: Final = 0.4
#: How long after the last operation the tasks may take to end.
QUIET_SECONDS: Final = 240.0
#: Fields of a task that answers are compared by.
_KEPT: Final = ("status", "priority", "created_at", "started_at", "completed_at", "result", "error")
#: As many of the newest tasks are listed: more than a history has.
LISTED: Final = 50
_BUSY: Final = "idempotency_busy"


@dataclass(frozen=True)
class Answer:
    """One reply; `outcome` is yes, no or unknown. `accepted`: ids of new tasks by the numbers of their posts."""

    outcome: str
    code: int
    body: Any
    accepted: Mapping[int, str] = field(default_factory=dict)


class Driver:
    """Carries out one plan. `run_name` makes tokens and keys of this run unlike those of every other."""

    def __init__(self, stack: HistoryStack, plan: Plan, run_name: str) -> None:
        self._stack, self._plan, self.run_name = stack, plan, run_name
        self._journal = stack.journal
        self._faults = Faults(stack, stack.journal, plan.seed)
        self._ids: dict[int, asyncio.Future[str | None]] = {}
        self._asked = itertools.count()
        self._gone: set[str] = set()
        self._statuses: dict[str, str] = {}

    def token(self, number: int) -> str:
        """The parameter by which the rows of a post are found."""
        return f"{self.run_name}-{number}"

    async def run(self) -> bool:
        """Carry the plan out, then look until all accepted tasks have ended; False if they have not in time."""
        self._ids = {post.number: asyncio.get_running_loop().create_future() for post in self._plan.posts}
        up = self._stack.up.api
        async with httpx.AsyncClient(base_url=up.base_url, headers=up.headers, timeout=20) as self._http:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(self._keep_second_worker())
                tasks = [group.create_task(self._at_its_time(operation)) for operation in self._plan.operations]
                await asyncio.gather(*tasks)
                quiet = await self._quiet()
                keeping.cancel()
            await self._last_looks()
            return quiet

    async def _at_its_time(self, operation: Operation) -> None:
        await asyncio.sleep(operation.at)
        match operation:
            case Post():
                await self._post(operation)
            case Batch():
                await self._batch(operation)
            case Change():
                await self._change(operation)
            case Cancel():
                await self._cancel(operation)
            case Look():
                await self._look(operation)
            case Fault():
                await self._faults.do(operation)

    async def _post(self, post: Post) -> None:
        body = await self._body(post)
        if body is None:
            self._ids[post.number].set_result(None)
            return
        copies = (self._submit(post, body, copy) for copy in range(post.copies))
        self._learn([post], await asyncio.gather(*copies))

    def _learn(self, posts: Iterable[Post], answers: Iterable[Answer]) -> None:
        """Remember the ids of posts that were sent together, once all answers to their copies are there."""
        known = next((answer.accepted for answer in answers if answer.accepted), {})
        for post in posts:
            self._ids[post.number].set_result(known.get(post.number))

    async def _body(self, post: Post, names: Mapping[int, str] = MappingProxyType({})) -> dict[str, Any] | None:
        """The request; None if it depends on a task that was not accepted. `names`: how a batch calls its tasks."""
        upstream = [names.get(number) or await self._ids[number] for number in post.depends_on]
        if None in upstream:
            return None
        body: dict[str, Any] = {
            "template": post.template,
            "parameters": {"token": self.token(post.number), "seconds": post.seconds},
            "priority": post.priority,
        }
        body |= {"depends_on": upstream} if upstream else {}
        return body | ({"on_dependency_failure": "run"} if post.runs_anyway else {})

    async def _submit(self, post: Post, body: Mapping[str, Any], copy: int) -> Answer:
        headers = {"Idempotency-Key": f"key-{self.token(post.number)}"} if post.keyed else {}
        about = {"numbers": [post.number], "copy": copy}
        return await self._until_known(
            "post", "POST", "/tasks", about, repeat=post.keyed, json=dict(body), headers=headers
        )

    async def _batch(self, batch: Batch) -> None:
        if not self._stack.has_batches:
            for post in batch.posts:
                await self._post(post)
            return
        names = {post.number: f"task-{post.number}" for post in batch.posts}
        bodies = [await self._body(post, names) for post in batch.posts]
        tasks = [{"name": names[post.number], **(body or {})} for post, body in zip(batch.posts, bodies, strict=True)]
        if None in bodies:
            self._learn(batch.posts, [])
            return
        copies = (self._submit_batch(batch, tasks, copy) for copy in range(batch.copies))
        self._learn(batch.posts, await asyncio.gather(*copies))

    async def _submit_batch(self, batch: Batch, tasks: list[dict[str, Any]], copy: int) -> Answer:
        headers = {"Idempotency-Key": f"key-{self.run_name}-batch"} if batch.keyed else {}
        about = {"numbers": [post.number for post in batch.posts], "copy": copy}
        return await self._until_known(
            "batch", "POST", "/tasks/batch", about, repeat=batch.keyed, json={"tasks": tasks}, headers=headers
        )

    async def _change(self, change: Change) -> None:
        task_id = await self._ids[change.number]
        if task_id:
            about = {"task": task_id, "priority": change.priority}
            path, wanted = f"/tasks/{task_id}/priority", {"priority": change.priority}
            await self._ask("change", "PATCH", path, about, params=wanted)

    async def _cancel(self, cancel: Cancel) -> None:
        task_id = await self._ids[cancel.number]
        if task_id:
            await self._until_known("cancel", "DELETE", f"/tasks/{task_id}", {"task": task_id}, repeat=True)

    async def _look(self, look: Look) -> None:
        if look.number is None:
            await self._ask("list", "GET", "/tasks", {}, params={"limit": LISTED})
            await self._ask("groups", "GET", "/tasks/status", {}, params={"limit": LISTED})
        elif task_id := await self._ids[look.number]:
            await self._ask("get", "GET", f"/tasks/{task_id}", {"task": task_id})

    async def _quiet(self) -> bool:
        """Look at the list until all accepted tasks have ended."""
        deadline = time.monotonic() + QUIET_SECONDS
        accepted = [task_id for future in self._ids.values() if (task_id := await future)]
        while not all(self._statuses.get(task_id) in FINAL for task_id in accepted):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(PAUSE_SECONDS)
            await self._ask("list", "GET", "/tasks", {}, params={"limit": LISTED})
        return True

    async def _last_looks(self) -> None:
        """Everything once more, after everything."""
        await asyncio.to_thread(self._stack.wait_until_whole)
        for future in self._ids.values():
            if task_id := await future:
                await self._ask("get", "GET", f"/tasks/{task_id}", {"task": task_id})
        await self._ask("list", "GET", "/tasks", {}, params={"limit": LISTED})
        await self._ask("groups", "GET", "/tasks/status", {}, params={"limit": LISTED})

    async def _keep_second_worker(self) -> None:
        while True:
            self._stack.second.keep()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _until_known(
        self, what: str, method: str, path: str, about: dict[str, Any], *, repeat: bool, **request: Any
    ) -> Answer:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            answer = await self._ask(what, method, path, about, **request)
            if answer.outcome != "unknown" or not repeat or time.monotonic() > deadline:
                return answer
            await asyncio.sleep(PAUSE_SECONDS)

    async def _ask(self, what: str, method: str, path: str, about: Mapping[str, Any], **request: Any) -> Answer:
        """One request, written down before and after; then a look at the processes of what is told to be cancelled."""
        number = next(self._asked)
        self._journal.write("ask", ask=number, what=what, **about)
        try:
            reply = await self._http.request(method, path, **request)
        except httpx.HTTPError as exc:
            answer = Answer("unknown", 0, type(exc).__name__)
        else:
            answer = _answer(reply, about)
        seen = _seen(what, answer)
        self._journal.write(
            "answer",
            ask=number,
            outcome=answer.outcome,
            code=answer.code,
            problem=answer.body if answer.outcome != "yes" else None,
            seen=seen,
            accepted=dict(answer.accepted),
        )
        self._note(seen)
        return answer

    def _note(self, seen: Mapping[str, Mapping[str, Any]]) -> None:
        """Remember statuses; what is cancelled for the first time must have no process from now on."""
        gone = []
        for task_id, fields in seen.items():
            self._statuses[task_id] = fields["status"]
            if fields["status"] == "cancelled" and task_id not in self._gone:
                gone.append(task_id)
        if gone:
            self._gone |= set(gone)
            alive = living(self._stack, gone)
            self._journal.write("scan", alive={task_id: alive.get(task_id, []) for task_id in gone})


def _answer(reply: httpx.Response, about: Mapping[str, Any]) -> Answer:
    body: Any = reply.json() if reply.content else None
    outcome = _outcome(reply)
    accepted: dict[int, str] = {}
    if outcome == "yes" and "numbers" in about:
        accepted = dict(zip(about["numbers"], body.get("ids") or [body["id"]], strict=True))
    return Answer(outcome, reply.status_code, body, accepted)


def _outcome(reply: httpx.Response) -> str:
    if reply.is_success:
        return "yes"
    busy = reply.status_code == 409 and reply.json().get("code") == _BUSY
    return "unknown" if busy or reply.status_code >= 500 else "no"


def _seen(what: str, answer: Answer) -> dict[str, dict[str, Any]]:
    """What an answer says of tasks, by their ids."""
    if answer.outcome != "yes" or answer.body is None:
        return {}
    match what:
        case "list":
            tasks: Iterable[dict[str, Any]] = answer.body
        case "groups":
            tasks = [task for group in answer.body.values() for task in group]
        case "batch":  # tells ids, and no status
            return {}
        case _:
            tasks = [answer.body]
    return {task["id"]: {name: task[name] for name in _KEPT if name in task} for task in tasks}


def living(stack: HistoryStack, task_ids: Iterable[str]) -> dict[str, list[int]]:
    """The processes whose environment names the workspace of one of these tasks."""
    marks = {task_id: f"{stack.home}/workspaces/{task_id}/" for task_id in task_ids}
    found: dict[str, list[int]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            values = " ".join(process.environ().values())
            for task_id, mark in marks.items():
                if mark in values and process.status() != psutil.STATUS_ZOMBIE:
                    found.setdefault(task_id, []).append(process.pid)
    return found
