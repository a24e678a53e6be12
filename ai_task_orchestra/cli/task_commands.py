"""Tasks and templates over the REST API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ai_task_orchestra.cli import exit_codes
from ai_task_orchestra.cli.ask import ask
from ai_task_orchestra.cli.output import local_time, print_json, print_line, print_table

if TYPE_CHECKING:
    from ai_task_orchestra.client import LogLine, OrchestraClient, TaskDetail, Template

T = TypeVar("T")

TaskId = Annotated[str, typer.Argument(metavar="TASK", help="The task's id.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the API's answer as JSON.")]
FOLLOW_SECONDS = 1.0


def register(application: typer.Typer) -> None:
    for command in (run, show, cancel, priority, templates, logs):
        application.command()(command)
    application.command("list")(list_tasks)


def run(
    template: Annotated[str, typer.Argument(help="The template's name.", show_default=False)],
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A parameter; NAME=@FILE takes a file's text."),
    ] = None,
    priority: Annotated[int | None, typer.Option(min=1, max=10, help="10 is the most urgent; default 5.")] = None,
    depends_on: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="A task that must be completed first; may be repeated.")
    ] = None,
    even_if_dependency_fails: Annotated[
        bool, typer.Option("--even-if-dependency-fails", help="Run also when one of them fails.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end and print the result.")] = False,
    as_json: Json = False,
) -> None:
    """Hand in a task; prints its id, or with --wait its result."""
    from ai_task_orchestra.cli.parameters import parse_parameters
    from ai_task_orchestra.protocol import DEFAULT_PRIORITY

    async def submit(client: OrchestraClient) -> TaskDetail:
        values = parse_parameters(parameter or [], await client.template(template))
        task = await client.submit(
            template,
            values,
            priority=DEFAULT_PRIORITY if priority is None else priority,
            depends_on=depends_on or [],
            on_dependency_failure="run" if even_if_dependency_fails else "cancel",
        )
        return await client.wait(task["id"]) if wait else task

    task = ask(submit)
    if as_json:
        print_json(task)
    elif wait:
        _print_result(task)
    else:
        print_line(task["id"])
    if task["status"] in ("failed", "cancelled"):
        raise typer.Exit(exit_codes.TASK_FAILED)


def list_tasks(
    status: Annotated[
        str | None, typer.Option(help="queued, running, completed, failed or cancelled.", show_default=False)
    ] = None,
    template: Annotated[str | None, typer.Option(help="Tasks of this template only.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    offset: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """List tasks, newest first."""
    tasks = ask(lambda client: client.tasks(status=status, template=template, limit=limit, offset=offset))
    if as_json:
        print_json(tasks)
    else:
        rows = [(t["id"], t["status"], t["priority"], local_time(t["created_at"]), t["template"]) for t in tasks]
        print_table(("TASK", "STATUS", "PRIORITY", "CREATED", "TEMPLATE"), rows)


def show(task_id: TaskId, as_json: Json = False) -> None:
    """Show a task."""
    task = ask(lambda client: client.get(task_id))
    if as_json:
        print_json(task)
        return
    for name, value in task.items():
        if name.endswith("_at"):
            print_line(f"{name:<18} {local_time(str(value))}")
        elif isinstance(value, str | int):
            print_line(f"{name:<18} {value}")
        elif value:
            print_line(f"{name}:")
            _print_nested(value)


def cancel(task_id: TaskId) -> None:
    """Cancel a task that is queued or running."""
    ask(lambda client: client.cancel(task_id))
    print_line(f"{task_id} will be cancelled")


def priority(
    task_id: TaskId, value: Annotated[int, typer.Argument(min=1, max=10, metavar="1..10")], as_json: Json = False
) -> None:
    """Change the priority of a queued task; 10 is the most urgent."""
    answer = ask(lambda client: client.change_priority(task_id, value))
    if as_json:
        print_json(answer)
    else:
        print_line(f"{answer['id']} has priority {answer['priority']}")


def templates(
    name: Annotated[str | None, typer.Argument(help="Show this one.", show_default=False)] = None, as_json: Json = False
) -> None:
    """List the templates, or show one with its parameters."""

    async def fetch(client: OrchestraClient) -> list[Template]:
        return await client.templates() if name is None else [await client.template(name)]

    found = ask(fetch)
    if as_json:
        print_json(found if name is None else found[0])
    elif name is None:
        print_table(("TEMPLATE", "DESCRIPTION"), [(t["name"], t["description"]) for t in found])
    else:
        _print_template(found[0])


def logs(
    task_id: TaskId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the task has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Show a task's log."""

    def show_lines(lines: list[LogLine]) -> None:
        if as_json:
            print_json(lines)
            return
        for line in lines:
            step = f" [{line['step']}]" if "step" in line else ""
            print_line(f"{local_time(line['timestamp'])} {line['level']:<7}{step} {line['message']}")

    async def fetch(client: OrchestraClient) -> None:
        import asyncio

        from ai_task_orchestra.client import FINAL, LOG_PAGE

        seen = 0
        while True:
            ended = not follow or (await client.get(task_id))["status"] in FINAL
            while lines := await client.logs(task_id, offset=seen):
                show_lines(lines)
                seen += len(lines)
                if len(lines) < LOG_PAGE:
                    break
            if ended:
                if seen == 0 and as_json:
                    print_json([])
                return
            await asyncio.sleep(FOLLOW_SECONDS)

    ask(fetch)


def _print_result(task: TaskDetail) -> None:
    """The output as it is, so that it can be piped; anything else as JSON; an error on standard error."""
    if "error" in task:
        step = f" in step {task['error']['step']}" if "step" in task["error"] else ""
        typer.echo(f"{task['status']}{step}: {task['error']['message']}", err=True)
    elif task["status"] != "completed":
        typer.echo(task["status"], err=True)
    if "result" in task:
        output = task["result"].get("output")
        if isinstance(output, str):
            print_line(output.removesuffix("\n"))
        else:
            print_json(task["result"] if output is None else output)


def _print_template(template: Template) -> None:
    print_line(f"{template['name']}: {template['description']}\n")
    rows = []
    for parameter in template["parameters"]:
        need = "required" if parameter["required"] else f"default {parameter.get('default', '–')}"
        rows.append((parameter["name"], parameter["type"], need, parameter["description"]))
    print_table(("PARAMETER", "TYPE", "", "DESCRIPTION"), rows)
    steps = [str(step.get("name", step["type"])) for step in template.get("steps", [])]
    print_line(f"\nsteps: {' → '.join(steps)}")


def _print_nested(value: object) -> None:
    import json

    for line in json.dumps(value, indent=2, ensure_ascii=False).splitlines():
        print_line(f"  {line}")
