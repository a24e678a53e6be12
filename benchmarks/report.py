"""What was measured: kept as JSON, printed as tables with ratios, floors, and what the last kept run had."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

FOLDER: Final = Path(__file__).parent
RESULTS: Final = FOLDER / "results"
BASELINE: Final = FOLDER / "baseline.json"

#: part -> system -> figure -> value
Measured = dict[str, dict[str, dict[str, float]]]

#: What the project promises on 2 cores: (part, figure) -> (bound, True if larger is better).
FLOORS: Final[Mapping[tuple[str, str], tuple[float, bool]]] = {
    ("latency", "start_p50_ms"): (60, False),
    ("latency", "start_p95_ms"): (150, False),
    ("latency", "post_p50_ms"): (5, False),
    ("burst of 200", "finished_per_second"): (18, True),
    ("burst of 2000", "accepted_per_second"): (500, True),
    ("chain of 10", "gap_p50_ms"): (100, False),
    ("idle", "cpu_percent ours"): (1, False),
    **{
        (part, f"{what}_p99_ms"): (bound, False)
        for part in ("backlog at rest", "backlog running")
        for what, bound in {"post": 100, "list": 50, "list_by_status": 50, "status": 50, "get": 50}.items()
    },
    ("backlog at rest", "start_p50_ms"): (150, False),
    ("backlog running", "start_p50_ms"): (150, False),
}
#: Figures of which ours and the stock system's are comparable, and True if larger is better.
COMPARED: Final = {"start_p50_ms": False, "start_p95_ms": False, "gap_p50_ms": False, "finished_per_second": True}


def document(measured: Measured, options: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a run."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "load_before": options.get("load_before"),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "options": dict(options),
        "measured": measured,
    }


def keep(result: Mapping[str, Any]) -> Path:
    """Write a run down; the newest file is what the next one is compared with."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{str(result['at']).replace(':', '').replace('+0000', '')}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return path


def last_kept() -> tuple[str, Measured] | None:
    """Name and figures of the last kept run, else of the tracked baseline."""
    kept = sorted(RESULTS.glob("2*.json")) or [BASELINE]
    if not kept[-1].exists():
        return None
    return kept[-1].stem, json.loads(kept[-1].read_text())["measured"]


def show(measured: Measured, before: tuple[str, Measured] | None, console: Console) -> None:
    """One table, a block of rows for each part."""
    table = Table(title="ours and a stock Prefect", title_justify="left")
    table.add_column("part")
    table.add_column("figure")
    for name in ("ours", "stock", "times better", "floor", f"before ({before[0]})" if before else "before"):
        table.add_column(name, justify="right")
    for part, systems in measured.items():
        for number, row in enumerate(_rows(part, systems, before[1].get(part, {}) if before else {})):
            table.add_row(part if number == 0 else "", *row)
        table.add_section()
    console.print(table)


def _rows(part: str, systems: Mapping[str, Mapping[str, float]], before: Any) -> Iterator[tuple[str, ...]]:
    ours, stock = systems.get("ours", {}), systems.get("stock", {})
    for figure in [*ours, *(name for name in stock if name not in ours)]:
        value, other = ours.get(figure), stock.get(figure)
        ratio = ""
        if value and other and figure in COMPARED:
            ratio = f"{value / other if COMPARED[figure] else other / value:.1f}"
        yield (
            figure,
            _shown(value),
            _shown(other),
            ratio,
            _floor(part, figure, value),
            _shown(before.get("ours", {}).get(figure)),
        )


def _floor(part: str, figure: str, value: float | None) -> str:
    if (part, figure) not in FLOORS or value is None:
        return ""
    bound, larger = FLOORS[part, figure]
    held = value >= bound if larger else value <= bound
    return f"[{'green' if held else 'red'}]{'≥' if larger else '≤'} {bound:g}[/]"


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.0f}"
