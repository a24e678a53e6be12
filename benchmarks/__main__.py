"""`python -m benchmarks`, or `make bench ARGS="..."`: measure, print, keep.

make bench                                        everything but `scale` and `soak`, once
make bench ARGS="--repeat 3"                      medians of three
make bench ARGS="--only latency,burst --no-stock"
make bench ARGS="--only scale"                    1,000,000 finished and 100,000 queued rows
make bench ARGS="--only calls --no-stock"         which requests Prefect gets for one task
make bench ARGS="--profile worker"                a profile of one part's processes (needs py-spy)
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from rich.console import Console

from benchmarks import calls, parts, profiles, report, scale
from benchmarks.ours import OurStack, our_stack
from benchmarks.parts import Figures
from benchmarks.report import Measured
from benchmarks.stock import stock_prefect
from benchmarks.times import medians

USUAL: Final = ("latency", "burst", "chain", "fan", "idle")
EXTRA: Final = ("scale", "soak", "calls")
#: The dispatcher's default window.
WINDOW: Final = 1000
#: A stock worker takes minutes for a few dozens.
STOCK_BURST: Final = 20
STOCK_LATENCY: Final = 10
STOCK_CHAIN: Final = 4
SUPERVISED: Final = ("API", "worker", "template and children", "supervisor")

console = Console(width=150)


def main() -> None:
    """The command."""
    options = _options()
    asyncio.run(run(options))


async def run(options: argparse.Namespace) -> None:
    """Measure what is asked for, one system after the other."""
    chosen = options.only.split(",") if options.only else list(USUAL)
    if unknown := set(chosen) - {*USUAL, *EXTRA}:
        raise SystemExit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join((*USUAL, *EXTRA))}")
    load = os.getloadavg()[0]
    if load > 0.5:
        console.print(f"[yellow]the machine is busy (load {load:.1f}): absolute numbers mean little[/]")
    measured: Measured = {}
    if options.profile:
        await _profile(options)
        return
    await _ours(options, chosen, measured)
    if options.stock and set(chosen) & {"latency", "burst", "chain", "idle"}:
        await _stock(options, chosen, measured)
    before = report.last_kept()
    report.show(measured, before, console)
    result = report.document(measured, vars(options) | {"load_before": load})
    console.print(f"kept as {report.keep(result)}")


async def _ours(options: argparse.Namespace, chosen: list[str], measured: Measured) -> None:
    environment = calls.LOGGED if "calls" in chosen else {}
    async with our_stack(**environment) as stack:
        take = partial(_take, measured, "ours", options.repeat)
        await parts.latency(stack, 3)  # everything has run once
        if "calls" in chosen:
            await take("calls, one by one", lambda: calls.calls(stack, 20, at_once=False))
            await take("calls, 100 at once", lambda: calls.calls(stack, 100, at_once=True))
        if "latency" in chosen:
            await take("latency", lambda: parts.latency(stack, options.tasks))
        if "burst" in chosen:
            for count in options.bursts:
                await take(f"burst of {count}", lambda count=count: parts.burst(stack, count))  # type: ignore[misc]
        if "chain" in chosen:
            await take("chain of 10", lambda: parts.chain(stack, 10))
        if "fan" in chosen:
            await take("fan of 100", lambda: parts.fan(stack, 100))
        if "idle" in chosen:
            await take("idle", lambda: _idle(stack, options.idle_seconds))
        if "soak" in chosen:
            await take("soak of 10000", lambda: _soak(stack))
        if "scale" in chosen:
            await _scale(stack, options, measured)


async def _stock(options: argparse.Namespace, chosen: list[str], measured: Measured) -> None:
    async with stock_prefect() as system:
        take = partial(_take, measured, "stock", options.repeat)
        await parts.latency(system, 1)
        if "latency" in chosen:
            await take("latency", lambda: parts.latency(system, STOCK_LATENCY))
        if "burst" in chosen:
            await take(f"burst of {options.bursts[0]}", lambda: parts.burst(system, options.stock_burst, clients=1))
        if "chain" in chosen:
            await take("chain of 10", lambda: parts.driven_chain(system, STOCK_CHAIN))
        if "idle" in chosen:
            await take("idle", lambda: parts.idle(system, options.idle_seconds))


async def _take(
    measured: Measured, system: str, repeat: int, part: str, measure: Callable[[], Awaitable[Figures]]
) -> None:
    with console.status(f"{system}: {part}"):
        figures = medians(await parts.repeated(repeat, measure))
    measured.setdefault(part, {})[system] = figures
    shown = ", ".join(f"{name} {value:.3g}" for name, value in list(figures.items())[:4])
    console.print(f"{system}: {part}: {shown}")


async def _idle(stack: OurStack, seconds: float) -> Figures:
    figures = await parts.idle(stack, seconds)
    return {"cpu_percent ours": sum(figures.get(f"cpu_percent {role}", 0.0) for role in SUPERVISED)} | figures


async def _soak(stack: OurStack) -> Figures:
    """Memory of API and worker after 10,000 tasks, as a share of before."""
    before = {role: usage.pss_mb for role, usage in stack.usage().items()}
    figures = await parts.burst(stack, 10_000)
    await asyncio.sleep(10)
    after = {role: usage.pss_mb for role, usage in stack.usage().items()}
    grown = {f"memory_share {role}": mb / before[role] for role, mb in after.items() if before.get(role)}
    return {"finished_per_second": figures["finished_per_second"]} | grown


async def _scale(stack: OurStack, options: argparse.Namespace, measured: Measured) -> None:
    with console.status("ours: scale"):
        found = await scale.scale(
            stack, finished=options.finished, queued=options.queued, window=WINDOW, count=options.questions
        )
    for part, figures in found.items():
        measured.setdefault(part, {})["ours"] = figures


async def _profile(options: argparse.Namespace) -> None:
    report.RESULTS.mkdir(exist_ok=True)
    async with our_stack() as stack:
        await parts.latency(stack, 3)
        for file in await profiles.profile(stack, options.profile, options.bursts[0], report.RESULTS):
            console.print(f"written: {file} (open it in speedscope)")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", help=f"parts, separated by commas: {', '.join((*USUAL, *EXTRA))}")
    add("--repeat", type=int, default=1, help="how often each part is done; medians are shown")
    add("--no-stock", dest="stock", action="store_false", help="leave the stock Prefect out")
    add("--tasks", type=int, default=30, help="how many tasks the latency part submits")
    add("--bursts", type=lambda text: [int(n) for n in text.split(",")], default=[200, 2000])
    add("--stock-burst", type=int, default=STOCK_BURST, help="how many tasks the stock worker gets at once")
    add("--idle-seconds", type=float, default=60.0)
    add("--finished", type=int, default=1_000_000, help="finished rows of the scale part")
    add("--queued", type=int, default=100_000, help="queued rows of the scale part")
    add("--questions", type=int, default=200, help="how often the scale part asks each question")
    add("--profile", choices=profiles.PROCESSES, help="record a profile of these processes instead")
    return parser.parse_args()


if __name__ == "__main__":
    main()
