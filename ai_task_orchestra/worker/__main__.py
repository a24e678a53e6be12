"""`python -m ai_task_orchestra.worker [--pool POOL]`: a worker with the settings of the environment."""

from __future__ import annotations

import argparse
import asyncio

from ai_task_orchestra.isolation.own_memory import close_own_memory
from ai_task_orchestra.logs import configure_logging
from ai_task_orchestra.settings import load_settings
from ai_task_orchestra.worker.run import run_worker


def main() -> None:
    """Run a worker until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m ai_task_orchestra.worker")
    parser.add_argument("--pool", help="the work pool to serve (default: ORCHESTRA_WORK_POOL)")
    options = parser.parse_args()
    close_own_memory()
    settings = load_settings()
    configure_logging(settings.log_level)
    asyncio.run(run_worker(settings, pool=options.pool))


if __name__ == "__main__":
    main()
