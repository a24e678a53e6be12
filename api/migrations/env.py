"""Run by Alembic; the connection comes from `api.migrate`."""

from alembic import context
from sqlmodel import SQLModel

import api.models  # noqa: F401  (fills the metadata)

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    compare_server_default=True,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
