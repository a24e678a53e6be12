"""API keys: made once, shown once."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer

from ai_task_orchestra.cli.output import print_json, print_line, print_table
from ai_task_orchestra.errors import ConfigurationError

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

application = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)


@application.command()
def create(
    name: Annotated[str, typer.Argument(help="Who or what it is for.", show_default=False)],
    read_only: Annotated[bool, typer.Option("--read-only", help="It may look, but change nothing.")] = False,
    days: Annotated[int | None, typer.Option(min=1, help="It expires after so many days.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it: the only time it is shown."""
    from datetime import UTC, datetime, timedelta

    options: dict[str, Any] = {"scopes": ("read",)} if read_only else {}
    if days is not None:
        options["expires_at"] = datetime.now(UTC) + timedelta(days=days)
    stored, key = _with_keys(lambda keys: keys.create(name, **options))
    if as_json:
        print_json({**_fields(stored), "key": key})
    else:
        print_line(key)


@application.command("list")
def list_keys(as_json: Json = False) -> None:
    """List all keys ever made; the keys themselves are stored nowhere."""
    found = _with_keys(lambda keys: keys.list())
    if as_json:
        print_json([_fields(key) for key in found])
    else:
        rows = [(k.id, k.name, f"{k.prefix}…", ",".join(k.scopes), k.status, k.last_used_at or "never") for k in found]
        print_table(("ID", "NAME", "BEGINS", "MAY", "STATUS", "LAST USED"), rows)


@application.command()
def revoke(
    which: Annotated[str, typer.Argument(help="Its id, its name, or how it begins.", show_default=False)],
) -> None:
    """End a key at once."""
    stored = _with_keys(lambda keys: keys.revoke(which))
    print_line(f"{stored.name} ({stored.prefix}…) is revoked")


def _with_keys(use: Callable[[Any], Awaitable[T]]) -> T:
    """Use the key store of the database that the settings, or the stack that is up in this home, name."""
    import asyncio

    from ai_task_orchestra.settings import load_settings
    from ai_task_orchestra.stack.home import DATABASE_URL_FILE

    settings = load_settings()
    url = settings.database_url
    if url is None:
        try:
            url = (settings.home / DATABASE_URL_FILE).read_text().strip()
        except OSError as exc:
            raise ConfigurationError(
                f"no database: start `orchestra up` in {settings.home}, or set ORCHESTRA_DATABASE_URL"
            ) from exc
    # By name: the shared package imports no other room.
    open_keys = importlib.import_module("api.keys").open_keys

    async def run() -> T:
        async with open_keys(url) as keys:
            return await use(keys)

    return asyncio.run(run())


def _fields(stored: Any) -> dict[str, Any]:
    names = ("id", "name", "tenant", "prefix", "scopes", "status", "created_at", "expires_at", "last_used_at")
    found = {name: getattr(stored, name) for name in names}
    return {
        name: value.isoformat() if hasattr(value, "isoformat") else value
        for name, value in found.items()
        if value is not None
    }
