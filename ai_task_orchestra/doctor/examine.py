"""All checks, one after the other."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from ai_task_orchestra.doctor.files import check_files
from ai_task_orchestra.doctor.findings import Finding, note, ok, problem
from ai_task_orchestra.doctor.network import NetworkChecks, outside_addresses
from ai_task_orchestra.doctor.settings import check_settings
from ai_task_orchestra.doctor.versions import check_versions
from ai_task_orchestra.errors import ConfigurationError, OrchestraError
from ai_task_orchestra.settings import Settings
from ai_task_orchestra.stack.home import read_database_url


async def examine(settings: Settings, *, outside: Sequence[str] | None = None) -> list[Finding]:
    """Look at everything. `outside`: addresses of this machine as others see it; None for all it has."""
    database_url = _database_url(settings)
    network = NetworkChecks(settings, database_url, outside_addresses() if outside is None else outside)
    return [
        *check_settings(settings),
        *check_files(settings),
        *await _stored_keys(settings, database_url),
        *await network.all(),
        *check_versions(),
    ]


def _database_url(settings: Settings) -> str | None:
    try:
        return read_database_url(settings)
    except ConfigurationError:
        return None


async def _stored_keys(settings: Settings, database_url: str | None) -> list[Finding]:
    """Whether any key opens the API at all, and whether one with every right never ends."""
    if database_url is None:
        return [note("stored keys", "no database is known, so the keys in it were not looked at")]
    # By name: the shared package imports no other room.
    open_keys = importlib.import_module("api.keys").open_keys
    try:
        async with open_keys(database_url) as keys:
            active = [key for key in await keys.list() if key.status == "active"]
    except OrchestraError as exc:
        return [note("stored keys", exc.message)]
    configured = settings.api_key or settings.api_key_file.exists()
    if not active and not configured:
        says = "there is no API key: nobody can use the API"
        return [problem("stored keys", says, "make one: `orchestra keys create`")]
    lasting = [key.name for key in active if "admin" in key.scopes and key.expires_at is None]
    if lasting:
        says = f"{len(lasting)} stored keys with the scope admin never expire: {', '.join(lasting[:5])}"
        return [note("stored keys", says, "make those with --days, or revoke them: `orchestra keys revoke`")]
    return [ok("stored keys", f"{len(active)} keys are in use, none of them with every right for ever")]
