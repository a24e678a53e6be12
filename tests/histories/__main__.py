"""`make histories`: many random histories on one stack, each seed printed."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from random import SystemRandom

from tests.histories.run import Verdict, run_history
from tests.histories.stack import history_stack

_MOST_SEEDS = 1_000_000


def main() -> int:
    """0: all histories hold. After one that does not the stack is started anew."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # an orderly end: nothing may be left running
    seeds = [options.seed] if options.seed is not None else _many(options.first, options.count)
    print(f"{len(seeds)} histories, seeds {seeds[0]} to {seeds[-1]}", flush=True)
    begun, wrong, held = time.monotonic(), [], 0
    while seeds:
        with history_stack() as stack:
            while seeds:
                verdict = asyncio.run(run_history(stack, seeds.pop(0)))
                print(verdict if not verdict.problems else verdict.explanation(), flush=True)
                if verdict.problems:
                    wrong.append(verdict)
                    break
                held += 1
        if wrong and options.stop:
            break
    return _close(held, wrong, time.monotonic() - begun)


def _close(held: int, wrong: list[Verdict], seconds: float) -> int:
    print(f"{held} histories hold, {len(wrong)} do not, in {seconds / 60:.1f} minutes")
    for verdict in wrong:
        print(f"  {verdict}")
    return 1 if wrong else 0


def _many(first: int | None, count: int) -> list[int]:
    begin = SystemRandom().randrange(_MOST_SEEDS) if first is None else first
    return list(range(begin, begin + count))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make histories", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one history")
    parser.add_argument("--count", type=int, default=200, help="how many (200)")
    parser.add_argument("--first", type=int, help="the first seed; without it a random one, which is printed")
    parser.add_argument("--stop", action="store_true", help="stop at the first one that does not hold")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
