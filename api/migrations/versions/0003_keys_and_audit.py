"""Keys with limits and rotation, tasks that know their key, an audit of every change.

Revision 0003. What each column is for stands in `api.models`.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_RUNNABLE = "status = 'queued' AND unresolved = 0"


def upgrade() -> None:
    _keys()
    _tasks()
    _audit()


def _keys() -> None:
    op.add_column("api_key", sa.Column("templates", sa.ARRAY(sa.Text()), nullable=True))
    for name in ("max_priority", "max_queued", "max_running", "requests_per_minute"):
        op.add_column("api_key", sa.Column(name, sa.BigInteger(), nullable=True))
    op.add_column("api_key", sa.Column("previous_hash", sa.Text(), nullable=True))
    op.add_column("api_key", sa.Column("previous_expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("api_key_previous_hash", "api_key", ["previous_hash"], unique=True)
    op.execute("UPDATE api_key SET scopes = array_replace(scopes, 'write', 'submit')")


def _tasks() -> None:
    op.add_column("task", sa.Column("api_key_id", sa.Uuid(), nullable=True))
    op.add_column("task", sa.Column("barred", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("task", sa.Column("move_by", sa.JSON(none_as_null=True), nullable=True))
    op.drop_index("task_runnable", "task")
    _index_by_urgency("task_runnable", "work_pool", f"{_RUNNABLE} AND NOT barred")
    _index_by_urgency("task_barred", "api_key_id", f"{_RUNNABLE} AND barred")
    op.create_index(
        "task_of_key",
        "task",
        ["api_key_id", "status", "barred"],
        postgresql_where=sa.text("api_key_id IS NOT NULL AND status IN ('queued', 'running')"),
    )


def _index_by_urgency(name: str, group: str, rows: str) -> None:
    columns: list[str | sa.ColumnElement[Any]] = [group, sa.literal_column("priority DESC"), "seq"]
    op.create_index(name, "task", columns, postgresql_where=sa.text(rows))


def _audit() -> None:
    op.alter_column("audit", "task_id", nullable=True)
    op.add_column("audit", sa.Column("key_id", sa.Uuid(), nullable=True))
    op.add_column("audit", sa.Column("actor", sa.Text(), nullable=True))
    op.add_column("audit", sa.Column("actor_key_id", sa.Uuid(), nullable=True))
    op.add_column("audit", sa.Column("tenant", sa.Text(), nullable=True))
    op.add_column("audit", sa.Column("request_id", sa.Text(), nullable=True))
    op.create_index("audit_actor", "audit", ["actor_key_id", "id"])


def downgrade() -> None:
    op.drop_index("audit_actor", "audit")
    op.execute("DELETE FROM audit WHERE task_id IS NULL")
    op.alter_column("audit", "task_id", nullable=False)
    for name in ("key_id", "actor", "actor_key_id", "tenant", "request_id"):
        op.drop_column("audit", name)
    for name in ("task_of_key", "task_barred", "task_runnable"):
        op.drop_index(name, "task")
    for name in ("api_key_id", "barred", "move_by"):
        op.drop_column("task", name)
    _index_by_urgency("task_runnable", "work_pool", _RUNNABLE)
    op.execute("UPDATE api_key SET scopes = array_replace(scopes, 'submit', 'write')")
    op.drop_index("api_key_previous_hash", "api_key")
    limits = ("templates", "max_priority", "max_queued", "max_running", "requests_per_minute")
    for name in (*limits, "previous_hash", "previous_expires_at"):
        op.drop_column("api_key", name)
