"""How answers are written: JSON, UTC times, and which fields of a task each endpoint shows.

A field without a value is absent, never null; a null *inside* a task's parameters or result is data and stays.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from starlette.responses import Response

if TYPE_CHECKING:
    from ai_task_orchestra.template import TemplateSpec
    from api.audit import AuditEntry
    from api.keys import StoredKey
    from api.views import BatchSubmission, BatchView, LogLine, TaskView

STATUSES = ("queued", "running", "completed", "failed", "cancelled")

_ACCEPTED = ("id", "status", "priority", "created_at", "template", "parameters", "depends_on")
_LISTED = ("id", "status", "priority", "created_at", "completed_at", "template")
_GROUPED = ("id", "status", "priority", "created_at", "started_at", "completed_at", "template")
_DETAILED = (
    "id",
    "status",
    "priority",
    "created_at",
    "started_at",
    "completed_at",
    "template",
    "parameters",
    "depends_on",
    "result",
    "error",
    "resource_usage",
    "attempts",
    "flow_run_id",
    "flow_run_url",
    "batch_id",
    "name",
)
_MEMBER = ("id", "name", *_GROUPED[1:], "depends_on", "error")


_KEY = (
    "id",
    "name",
    "tenant",
    "prefix",
    "scopes",
    "status",
    "created_at",
    "expires_at",
    "revoked_at",
    "last_used_at",
    "previous_expires_at",
)
_LIMITS = ("templates", "max_priority", "max_queued", "max_running", "requests_per_minute")


class JsonAnswer(Response):
    """A JSON answer in UTF-8. A lone surrogate that a script smuggled into its output becomes a question mark."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", errors="replace")


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with six fraction digits, ending in `Z`: texts of equal length, so they sort as times do."""
    utc = moment.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='microseconds')}Z"


def accepted(task: TaskView) -> dict[str, Any]:
    """A task as `POST /tasks` answers it."""
    return _policy(task) | _pick(task, _ACCEPTED)


def listed(task: TaskView) -> dict[str, Any]:
    """A task as an item of `GET /tasks`."""
    return _pick(task, _LISTED)


def grouped(groups: Mapping[str, Iterable[TaskView]]) -> dict[str, Any]:
    """`GET /tasks/status`: the five groups, always all of them."""
    return {status: [_pick(task, _GROUPED) for task in groups.get(status, ())] for status in STATUSES}


def detailed(task: TaskView) -> dict[str, Any]:
    """A task as `GET /tasks/{id}` shows it."""
    return _pick(task, _DETAILED) | _policy(task)


def reprioritised(task: TaskView) -> dict[str, Any]:
    """What changing a priority answers."""
    return _pick(task, ("id", "priority", "status"))


def batch_accepted(batch: BatchSubmission) -> dict[str, Any]:
    """A batch as `POST /tasks/batch` answers it."""
    return _pick(batch, ("id", "created_at", "ids")) | {"tasks": batch.names}


def batch_detail(batch: BatchView) -> dict[str, Any]:
    """A batch as `GET /batches/{id}` shows it."""
    members = [_pick(task, _MEMBER) | _policy(task) for task in batch.tasks]
    return _pick(batch, ("id", "created_at", "status", "counts")) | {"tasks": members}


def log_line(line: LogLine) -> dict[str, Any]:
    """One line of a task's log."""
    return _pick(line, ("timestamp", "level", "step", "message"))


def api_key(stored: StoredKey, key: str | None = None) -> dict[str, Any]:
    """An API key as `/keys` shows it; `key` is its text, for the one answer that holds it."""
    shown = _pick(stored, _KEY) | _pick(stored.limits, _LIMITS)
    return shown if key is None else shown | {"key": key}


def audit_entry(entry: AuditEntry) -> dict[str, Any]:
    """One row of the audit."""
    return _pick(entry, [field.name for field in dataclasses.fields(entry)])


def template_summary(spec: TemplateSpec) -> dict[str, Any]:
    """A template as an item of `GET /templates`."""
    return {
        "name": spec.name,
        "description": spec.description,
        "parameters": [parameter.as_api() for parameter in spec.parameters],
    }


def template_detail(spec: TemplateSpec) -> dict[str, Any]:
    """A template with its steps as written in the YAML."""
    return template_summary(spec) | {"steps": spec.steps_as_written}


def _policy(task: TaskView) -> dict[str, Any]:
    """Shown only where it is not the usual one, so that an ordinary answer is exactly the reference's."""
    chosen = task.on_dependency_failure
    return {} if chosen == "cancel" else {"on_dependency_failure": chosen}


def _pick(source: Any, names: Iterable[str]) -> dict[str, Any]:
    values = ((name, getattr(source, name)) for name in names)
    return {name: _plain(value) for name, value in values if value is not None}


def _plain(value: Any) -> Any:
    """Times and our own dataclasses as JSON; whatever a user or a step wrote stays as it is."""
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, UUID):
        return str(value)
    if dataclasses.is_dataclass(value):
        return _pick(value, [field.name for field in dataclasses.fields(value)])
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
