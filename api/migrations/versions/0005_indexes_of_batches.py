"""Indexes by which the groups of batches are followed: what of a batch has not ended, and what is not shown yet.

Revision 0005. Only indexes: a process of the version before goes on working.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_UNSHOWN = "batch_id IS NOT NULL AND shown IS DISTINCT FROM status"


def upgrade() -> None:
    _replace(of_batch=["batch_id", "status"], of_unshown=["batch_id"])


def downgrade() -> None:
    _replace(of_batch=["batch_id"], of_unshown=["seq"])


def _replace(*, of_batch: Sequence[str], of_unshown: Sequence[str]) -> None:
    for name, columns, rows in (
        ("task_batch", of_batch, "batch_id IS NOT NULL"),
        ("task_unshown", of_unshown, _UNSHOWN),
    ):
        op.drop_index(name, "task")
        op.create_index(name, "task", columns, postgresql_where=sa.text(rows))
