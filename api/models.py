"""The tables of our database.

A row of `task` is the promise to a client; everything Prefect holds is made from it, again after any crash.
Parameters, results and errors are `json`, not `jsonb`: they come back exactly as written, keys in order, and text
that `jsonb` refuses (NUL, a lone surrogate) can't make a row unreadable.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    SmallInteger,
    Text,
    Uuid,
    func,
    text,
)
from sqlmodel import Field, SQLModel

LIVE: Final = ("queued", "running")
FINAL: Final = ("completed", "failed", "cancelled")

_LIVE_ROWS = text("status IN ('queued', 'running')")


class Phase:
    """How far the flow run of a task's current generation is: `task.phase`.

    A row moves WAITING → CREATING → HELD or READY → ENDED; a new generation starts at WAITING again.
    """

    #: No flow run exists, and none is being created.
    WAITING: Final = "waiting"
    #: A request to create it may be under way, or may have been when a process died.
    CREATING: Final = "creating"
    #: It exists and waits for dependencies, hidden from every worker.
    HELD: Final = "held"
    #: It exists and workers may claim it, or one has.
    READY: Final = "ready"
    #: The task's status is final.
    ENDED: Final = "ended"


def _json(*, nullable: bool = True) -> Any:
    return Column(JSON(none_as_null=True), nullable=nullable)


def _moment(*, nullable: bool = True, now: bool = False) -> Any:
    return Column(DateTime(timezone=True), nullable=nullable, server_default=func.now() if now else None)


class TaskRecord(SQLModel, table=True):
    """One accepted request to run a template, or one flow run that was born in Prefect."""

    __tablename__ = "task"
    __table_args__ = (
        Index("task_newest", "tenant", text("created_at DESC"), text("id DESC")),
        Index("task_newest_by_status", "tenant", "status", text("created_at DESC"), text("id DESC")),
        Index("task_newest_by_template", "tenant", "template", text("created_at DESC"), text("id DESC")),
        Index("task_idempotency", "tenant", "idempotency_key", unique=True),
        Index("task_flow_run", "flow_run_id", unique=True),
        Index("task_live", "seq", postgresql_where=_LIVE_ROWS),
        Index(
            "task_runnable",
            "work_pool",
            text("priority DESC"),
            "seq",
            postgresql_where=text("status = 'queued' AND unresolved = 0"),
        ),
        Index("task_held", "work_pool", "seq", postgresql_where=text("status = 'queued' AND unresolved > 0")),
        Index(
            "task_cancelling",
            "cancel_requested_at",
            postgresql_where=text("cancel_requested_at IS NOT NULL AND status IN ('queued', 'running')"),
        ),
        Index("task_moving", "seq", postgresql_where=text("move_to IS NOT NULL")),
        Index("task_worker", "worker", postgresql_where=_LIVE_ROWS),
        Index("task_running", "seq", postgresql_where=text("status = 'running'")),
        Index("task_creating", "seq", postgresql_where=text("phase = 'creating'")),
        Index("task_batch", "batch_id", "status", postgresql_where=text("batch_id IS NOT NULL")),
        Index(
            "task_unshown", "batch_id", postgresql_where=text("batch_id IS NOT NULL AND shown IS DISTINCT FROM status")
        ),
        Index(
            "task_without_nodes",
            "seq",
            postgresql_where=text(
                "depends_on <> '{}' AND unresolved = 0 AND status <> 'queued' "
                "AND flow_run_id IS NOT NULL AND nodes_run_id IS DISTINCT FROM flow_run_id"
            ),
        ),
    )

    id: uuid.UUID = Field(sa_column=Column(Uuid, primary_key=True))
    #: Order of acceptance. Dependencies always point to a smaller number: locks are taken in this order.
    seq: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(always=True), unique=True))
    tenant: str = Field(sa_column=Column(Text, nullable=False))
    template: str = Field(sa_column=Column(Text, nullable=False))
    parameters: dict[str, Any] = Field(sa_column=_json(nullable=False))
    priority: int = Field(sa_column=Column(SmallInteger, nullable=False))
    status: str = Field(sa_column=Column(Text, nullable=False, server_default="queued"))
    created_at: datetime = Field(sa_column=_moment(nullable=False, now=True))
    started_at: datetime | None = Field(default=None, sa_column=_moment())
    completed_at: datetime | None = Field(default=None, sa_column=_moment())
    result: Any = Field(default=None, sa_column=_json())
    error: Any = Field(default=None, sa_column=_json())
    resource_usage: Any = Field(default=None, sa_column=_json())

    idempotency_key: str | None = Field(default=None, sa_column=Column(Text))
    body_hash: str | None = Field(default=None, sa_column=Column(Text))

    #: The ids as given, in their order. `dependency` has a row for each.
    depends_on: list[uuid.UUID] = Field(sa_column=Column(ARRAY(Uuid), nullable=False, server_default="{}"))
    on_dependency_failure: str = Field(sa_column=Column(Text, nullable=False, server_default="cancel"))
    #: Dependencies that are not satisfied yet; 0 = runnable.
    unresolved: int = Field(sa_column=Column(BigInteger, nullable=False, server_default="0"))
    #: What the references in `parameters` say -> the task's id; None: the parameters hold no reference.
    refers_to: dict[str, str] | None = Field(default=None, sa_column=_json())
    #: The flow run in whose graph the dependencies have been shown.
    nodes_run_id: uuid.UUID | None = Field(default=None, sa_column=Column(Uuid))

    batch_id: uuid.UUID | None = Field(default=None, sa_column=Column(Uuid, ForeignKey("batch.id")))
    #: What its batch calls it.
    name: str | None = Field(default=None, sa_column=Column(Text))
    #: The status that the batch's group in Prefect shows.
    shown: str | None = Field(default=None, sa_column=Column(Text))

    #: True for a flow run that somebody made in Prefect.
    adopted: bool = Field(default=False, nullable=False, sa_column_kwargs={"server_default": text("false")})
    work_pool: str = Field(sa_column=Column(Text, nullable=False))
    #: What becomes of lost and failed attempts, frozen when the task was accepted.
    retries: int = Field(sa_column=Column(BigInteger, nullable=False, server_default="0"))
    retry_delay_seconds: float = Field(default=0.0, nullable=False, sa_column_kwargs={"server_default": text("0")})
    on_worker_loss: str = Field(sa_column=Column(Text, nullable=False, server_default="rerun"))
    failures: int = Field(sa_column=Column(BigInteger, nullable=False, server_default="0"))
    losses: int = Field(sa_column=Column(BigInteger, nullable=False, server_default="0"))
    hand_backs: int = Field(sa_column=Column(BigInteger, nullable=False, server_default="0"))
    #: Retries used by steps whose retries are attempts of their own, by step.
    step_failures: dict[str, int] | None = Field(default=None, sa_column=_json())

    #: Which flow run counts: the one created under `protocol.idempotency_key(id, generation)`.
    generation: int = Field(sa_column=Column(BigInteger, nullable=False, server_default="1"))
    phase: str = Field(sa_column=Column(Text, nullable=False, server_default=Phase.WAITING))
    #: No run before this time: a retry's delay, or a schedule's.
    not_before: datetime | None = Field(default=None, sa_column=_moment())
    flow_id: uuid.UUID | None = Field(default=None, sa_column=Column(Uuid))
    deployment_id: uuid.UUID | None = Field(default=None, sa_column=Column(Uuid))
    flow_run_id: uuid.UUID | None = Field(default=None, sa_column=Column(Uuid))
    #: The state of the flow run that this row was last brought in line with.
    state_id: uuid.UUID | None = Field(default=None, sa_column=Column(Uuid))
    #: Its time by Prefect's clock: an older state that is read late changes nothing.
    state_at: datetime | None = Field(default=None, sa_column=_moment())
    worker: str | None = Field(default=None, sa_column=Column(Text))

    #: Intents, written before Prefect is asked, so that a killed process's work is finished by another.
    move_to: int | None = Field(default=None, sa_column=Column(SmallInteger))
    cancel_requested_at: datetime | None = Field(default=None, sa_column=_moment())
    #: Since when the task certainly ends as cancelled: its run was first seen Cancelling, or its client was told so.
    cancelling_since: datetime | None = Field(default=None, sa_column=_moment())


class DependencyRecord(SQLModel, table=True):
    """`task_id` waits for `upstream_id`, until `resolved`."""

    __tablename__ = "dependency"
    __table_args__ = (Index("dependency_waiting", "upstream_id", postgresql_where=text("NOT resolved")),)

    task_id: uuid.UUID = Field(sa_column=Column(Uuid, ForeignKey("task.id", ondelete="CASCADE"), primary_key=True))
    upstream_id: uuid.UUID = Field(sa_column=Column(Uuid, ForeignKey("task.id", ondelete="CASCADE"), primary_key=True))
    resolved: bool = Field(default=False, nullable=False)


class BatchRecord(SQLModel, table=True):
    """Tasks that were accepted together. `task_ids` are in the order of the request."""

    __tablename__ = "batch"
    __table_args__ = (
        Index("batch_idempotency", "tenant", "idempotency_key", unique=True),
        Index("batch_open", "created_at", postgresql_where=text("closed_at IS NULL")),
    )

    id: uuid.UUID = Field(sa_column=Column(Uuid, primary_key=True))
    tenant: str = Field(sa_column=Column(Text, nullable=False))
    created_at: datetime = Field(sa_column=_moment(nullable=False, now=True))
    task_ids: list[uuid.UUID] = Field(sa_column=Column(ARRAY(Uuid), nullable=False))
    idempotency_key: str | None = Field(default=None, sa_column=Column(Text))
    body_hash: str | None = Field(default=None, sa_column=Column(Text))
    #: The flow run that shows the batch as one group in Prefect.
    group_run_id: uuid.UUID | None = Field(default=None, sa_column=Column(Uuid))
    #: When the group was given its final state; nothing is left to show.
    closed_at: datetime | None = Field(default=None, sa_column=_moment())


class AttemptRecord(SQLModel, table=True):
    """One time that work on a task was begun. Not every generation is one: a run moved in its queue never began."""

    __tablename__ = "attempt"

    task_id: uuid.UUID = Field(sa_column=Column(Uuid, ForeignKey("task.id", ondelete="CASCADE"), primary_key=True))
    generation: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    flow_run_id: uuid.UUID = Field(sa_column=Column(Uuid, nullable=False))
    worker: str | None = Field(default=None, sa_column=Column(Text))
    started_at: datetime | None = Field(default=None, sa_column=_moment())
    ended_at: datetime | None = Field(default=None, sa_column=_moment())
    #: `completed`, `failed`, `crashed`, `handed_back` or `cancelled`; None while it runs.
    outcome: str | None = Field(default=None, sa_column=Column(Text))


class DisposalRecord(SQLModel, table=True):
    """A flow run that must not stay as it is in Prefect: `delete` it, `cancel` it, or `overrule` how it ended."""

    __tablename__ = "disposal"

    flow_run_id: uuid.UUID = Field(sa_column=Column(Uuid, primary_key=True))
    task_id: uuid.UUID = Field(sa_column=Column(Uuid, nullable=False))
    action: str = Field(sa_column=Column(Text, nullable=False))
    created_at: datetime = Field(sa_column=_moment(nullable=False, now=True))


class AuditRecord(SQLModel, table=True):
    """Something that contradicts what is already decided, for example a late state of a finished task."""

    __tablename__ = "audit"
    __table_args__ = (
        Index("audit_task", "task_id"),
        Index("audit_once", "flow_run_id", "state_id", "kind", unique=True),
    )

    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    at: datetime = Field(sa_column=_moment(nullable=False, now=True))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    task_id: uuid.UUID = Field(sa_column=Column(Uuid, nullable=False))
    flow_run_id: uuid.UUID | None = Field(default=None, sa_column=Column(Uuid))
    state_id: uuid.UUID | None = Field(default=None, sa_column=Column(Uuid))
    detail: dict[str, Any] = Field(sa_column=_json(nullable=False))


class ApiKeyRecord(SQLModel, table=True):
    """An API key; the key itself is stored nowhere, only its SHA-256."""

    __tablename__ = "api_key"
    __table_args__ = (Index("api_key_hash", "key_hash", unique=True),)

    id: uuid.UUID = Field(sa_column=Column(Uuid, primary_key=True))
    name: str = Field(sa_column=Column(Text, nullable=False))
    tenant: str = Field(sa_column=Column(Text, nullable=False, server_default="default"))
    key_hash: str = Field(sa_column=Column(Text, nullable=False))
    prefix: str = Field(sa_column=Column(Text, nullable=False))
    scopes: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    created_at: datetime = Field(sa_column=_moment(nullable=False, now=True))
    expires_at: datetime | None = Field(default=None, sa_column=_moment())
    revoked_at: datetime | None = Field(default=None, sa_column=_moment())
    last_used_at: datetime | None = Field(default=None, sa_column=_moment())
