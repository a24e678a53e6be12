"""API keys: made once, shown once. The commands work on the database, so they need no key and no running API."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Annotated, Any, TypeVar

import typer

from ai_task_orchestra.cli.output import print_json, print_line, print_table
from ai_task_orchestra.errors import ConfigurationError

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Which = Annotated[str, typer.Argument(help="Its id, its name, or how it begins.", show_default=False)]

application = typer.Typer(help="Make, list, rotate and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)


def _limit(text: str) -> Any:
    return typer.Option(min=1, help=text, show_default=False)


@application.command()
def create(
    name: Annotated[str, typer.Argument(help="Who or what it is for.", show_default=False)],
    read_only: Annotated[bool, typer.Option("--read-only", help="It may look, but change nothing.")] = False,
    admin: Annotated[bool, typer.Option("--admin", help="It may also see to keys and read the audit.")] = False,
    tenant: Annotated[
        str, typer.Option(help="Whose tasks it makes and sees; others' do not exist for it.")
    ] = "default",
    days: Annotated[int | None, typer.Option(min=1, help="It expires after so many days.", show_default=False)] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="It may use this template only; may be repeated.", show_default=False)
    ] = None,
    max_priority: Annotated[int | None, _limit("Its tasks get this priority at most.")] = None,
    max_queued: Annotated[int | None, _limit("So many of its tasks may be queued at once.")] = None,
    max_running: Annotated[int | None, _limit("So many of its tasks run at once.")] = None,
    requests_per_minute: Annotated[int | None, _limit("So many requests a minute.")] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it: the only time it is shown."""
    from datetime import UTC, datetime, timedelta

    if read_only and admin:
        raise ConfigurationError("a key is either --read-only or --admin")
    scopes = ("read",) if read_only else ("read", "submit", "admin") if admin else ("read", "submit")
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)

    def make(keys: Any, api: ModuleType) -> Awaitable[tuple[Any, str]]:
        limits = api.Limits(
            templates=tuple(template) if template else None,
            max_priority=max_priority,
            max_queued=max_queued,
            max_running=max_running,
            requests_per_minute=requests_per_minute,
        )
        made: Awaitable[tuple[Any, str]] = keys.create(api.NewKey(name, tenant, scopes, expires_at, limits))
        return made

    _print_key(*_with_keys(make), as_json=as_json)


@application.command("list")
def list_keys(as_json: Json = False) -> None:
    """List all keys ever made; the keys themselves are stored nowhere."""
    found = _with_keys(lambda keys, _: keys.list())
    if as_json:
        print_json([_fields(key) for key in found])
    else:
        rows = [
            (k.id, k.name, f"{k.prefix}…", k.tenant, ",".join(k.scopes), k.status, k.last_used_at or "never")
            for k in found
        ]
        print_table(("ID", "NAME", "BEGINS", "TENANT", "MAY", "STATUS", "LAST USED"), rows)


@application.command()
def revoke(which: Which) -> None:
    """End a key: within 5 seconds it opens nothing any more."""
    stored = _with_keys(lambda keys, _: keys.revoke(which))
    print_line(f"{stored.name} ({stored.prefix}…) is revoked")


@application.command()
def rotate(
    which: Which,
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=30 * 24, help="How long the present key is still accepted.")
    ] = 24.0,
    as_json: Json = False,
) -> None:
    """Replace a key by a new one with the same rights, and print it: the only time it is shown."""
    from datetime import timedelta

    overlap = timedelta(hours=overlap_hours)
    _print_key(*_with_keys(lambda keys, _: keys.rotate(which, overlap=overlap)), as_json=as_json)


def _print_key(stored: Any, key: str, *, as_json: bool) -> None:
    if as_json:
        print_json({**_fields(stored), "key": key})
    else:
        print_line(key)


def _with_keys(use: Callable[[Any, ModuleType], Awaitable[T]]) -> T:
    """Use the key store of the database that the settings, or the stack that is up in this home, name."""
    import asyncio

    from ai_task_orchestra.settings import load_settings
    from ai_task_orchestra.stack.home import read_database_url

    url = read_database_url(load_settings())
    # By name: the shared package imports no other room.
    api = importlib.import_module("api.keys")

    async def run() -> T:
        async with api.open_keys(url) as keys:
            return await use(keys, api)

    return asyncio.run(run())


def _fields(stored: Any) -> dict[str, Any]:
    names = ("id", "name", "tenant", "prefix", "scopes", "status", "created_at", "expires_at", "last_used_at")
    found = {name: getattr(stored, name) for name in (*names, "previous_expires_at")}
    found |= {name: value for name, value in vars(stored.limits).items() if value is not None}
    return {
        name: value.isoformat() if hasattr(value, "isoformat") else value
        for name, value in found.items()
        if value is not None
    }
