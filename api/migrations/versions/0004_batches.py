"""Batches of tasks, references to results, and what of a task's dependencies Prefect's graphs show.

Revision 0004. Every new column of `task` may be empty: a process of the version before goes on working. What each
column is for stands in `api.models`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "batch",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("task_ids", sa.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("body_hash", sa.Text(), nullable=True),
        sa.Column("group_run_id", sa.Uuid(), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("batch_idempotency", "batch", ["tenant", "idempotency_key"], unique=True)
    op.create_index("batch_open", "batch", ["created_at"], postgresql_where=sa.text("closed_at IS NULL"))
    op.add_column("task", sa.Column("batch_id", sa.Uuid(), nullable=True))
    op.add_column("task", sa.Column("name", sa.Text(), nullable=True))
    op.add_column("task", sa.Column("refers_to", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("task", sa.Column("nodes_run_id", sa.Uuid(), nullable=True))
    op.add_column("task", sa.Column("shown", sa.Text(), nullable=True))
    op.create_foreign_key("task_batch_id_fkey", "task", "batch", ["batch_id"], ["id"])
    # Runs of before get no nodes: their graphs stay as they are.
    op.execute("UPDATE task SET nodes_run_id = flow_run_id WHERE depends_on <> '{}' AND flow_run_id IS NOT NULL")
    op.create_index("task_batch", "task", ["batch_id"], postgresql_where=sa.text("batch_id IS NOT NULL"))
    op.create_index(
        "task_unshown",
        "task",
        ["seq"],
        postgresql_where=sa.text("batch_id IS NOT NULL AND shown IS DISTINCT FROM status"),
    )
    op.create_index(
        "task_without_nodes",
        "task",
        ["seq"],
        postgresql_where=sa.text(
            "depends_on <> '{}' AND unresolved = 0 AND status <> 'queued' "
            "AND flow_run_id IS NOT NULL AND nodes_run_id IS DISTINCT FROM flow_run_id"
        ),
    )


def downgrade() -> None:
    for index in ("task_without_nodes", "task_unshown", "task_batch"):
        op.drop_index(index, "task")
    for column in ("shown", "nodes_run_id", "refers_to", "name", "batch_id"):
        op.drop_column("task", column)
    op.drop_table("batch")
