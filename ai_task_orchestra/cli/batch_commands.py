"""Batches over the REST API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ai_task_orchestra.cli import exit_codes
from ai_task_orchestra.cli.ask import ask
from ai_task_orchestra.cli.output import print_json, print_line, print_table

if TYPE_CHECKING:
    from ai_task_orchestra.client import Batch, BatchReceipt, OrchestraClient

BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="The batch's id.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the API's answer as JSON.")]


def register(application: typer.Typer) -> None:
    application.command()(batch)
    application.command("batch-show")(show)
    application.command("batch-cancel")(cancel)


def batch(
    file: Annotated[str, typer.Argument(help="Tasks in YAML or JSON; - reads standard input.", show_default=False)],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all have ended and print them.")] = False,
    as_json: Json = False,
) -> None:
    """Hand in many tasks, all or none; prints the batch's id, or with --wait what became of each."""
    from ai_task_orchestra.cli.batch_file import read_tasks

    tasks = read_tasks(file)

    async def submit(client: OrchestraClient) -> tuple[BatchReceipt, Batch | None]:
        made = await client.submit_batch(tasks)
        return made, await client.wait_batch(made["id"]) if wait else None

    made, ended = ask(submit)
    if as_json:
        print_json(ended or made)
    elif ended:
        _print_batch(ended)
    else:
        print_line(made["id"])
    if ended and ended["status"] != "completed":
        raise typer.Exit(exit_codes.TASK_FAILED)


def show(batch_id: BatchId, as_json: Json = False) -> None:
    """Show a batch and its tasks."""
    found = ask(lambda client: client.batch(batch_id))
    if as_json:
        print_json(found)
    else:
        _print_batch(found)


def cancel(batch_id: BatchId) -> None:
    """Cancel every task of a batch that has not ended."""
    ask(lambda client: client.cancel_batch(batch_id))
    print_line(f"{batch_id} will be cancelled")


def _print_batch(found: Batch) -> None:
    counts = ", ".join(f"{count} {status}" for status, count in found["counts"].items() if count)
    print_line(f"{found['id']}  {found['status']}: {counts}\n")
    rows = [
        (task.get("name", ""), task["id"], task["status"], task["priority"], task.get("error", {}).get("message", ""))
        for task in found["tasks"]
    ]
    print_table(("NAME", "TASK", "STATUS", "PRIORITY", "ERROR"), rows)
