"""`orchestra doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ai_task_orchestra.doctor.findings import Finding

#: The exit code when something has to be mended.
PROBLEMS = 1


def register(application: typer.Typer) -> None:
    application.command()(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Look for what is open in this installation, and say how to mend it. Exit code 1: there are problems."""
    import asyncio
    import dataclasses

    from ai_task_orchestra.cli.output import print_json
    from ai_task_orchestra.doctor.examine import examine
    from ai_task_orchestra.settings import load_settings

    found = asyncio.run(examine(load_settings()))
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in found])
    else:
        _print(found)
    raise typer.Exit(PROBLEMS if any(finding.verdict == "problem" for finding in found) else 0)


def _print(found: list[Finding]) -> None:
    from ai_task_orchestra.cli.output import print_line

    width = max(len(finding.check) for finding in found)
    for verdict in ("ok", "note", "problem"):
        for finding in found:
            if finding.verdict == verdict:
                print_line(f"{verdict:<8} {finding.check:<{width}}  {finding.says}")
                if finding.mend:
                    print_line(f"{'':<{10 + width}} mend: {finding.mend}")
    problems, notes = (sum(finding.verdict == verdict for finding in found) for verdict in ("problem", "note"))
    print_line(f"problems: {problems}, notes: {notes}")
