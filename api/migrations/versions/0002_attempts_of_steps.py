"""Runs that were handed back, and retries of single steps that are attempts of their own, are counted.

Revision 0002. What each column is for stands in `api.models`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("task", sa.Column("hand_backs", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("task", sa.Column("step_failures", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("task", "step_failures")
    op.drop_column("task", "hand_backs")
