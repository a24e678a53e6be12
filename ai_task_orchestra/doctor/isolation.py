"""How far programs of tasks are kept apart on this machine."""

from __future__ import annotations

from typing import Protocol

from ai_task_orchestra.doctor.findings import Finding, ok, problem


class IsolationReport(Protocol):
    """What is known of it: the level in use (None: programs are refused), what it leaves open, what would mend that."""

    @property
    def level(self) -> int | None: ...
    @property
    def open(self) -> tuple[str, ...]: ...
    @property
    def mend(self) -> str | None: ...


def check_isolation(report: IsolationReport) -> Finding:
    """The level, and what a program of a task can reach nevertheless."""
    mend = report.mend or "use a machine that offers a higher level"
    if report.level is None:
        return problem("isolation", "programs of tasks are refused: the machine offers less than is asked for", mend)
    said = f"programs of tasks run at isolation level {report.level}"
    if not report.open:
        return ok("isolation", said)
    said = f"{said} and can reach: {'; '.join(report.open)}"
    if report.level == 0:
        return problem("isolation", said, mend)
    return Finding("isolation", "note", said, report.mend)
