"""`python -m ai_task_orchestra.model_backend`: serve local models over the Ollama protocol, to this machine only."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from ai_task_orchestra.errors import ConfigurationError, OrchestraError
from ai_task_orchestra.logs import configure_logging
from ai_task_orchestra.model_backend import model_file
from ai_task_orchestra.model_backend.app import create_app
from ai_task_orchestra.model_backend.digests import DigestStore
from ai_task_orchestra.model_backend.durations import keep_alive_seconds
from ai_task_orchestra.model_backend.engine import open_http
from ai_task_orchestra.model_backend.fetch import EXIT_CODES, exit_on_sigterm, show_progress
from ai_task_orchestra.model_backend.guard import is_loopback
from ai_task_orchestra.model_backend.installed import Shelf, read_model
from ai_task_orchestra.model_backend.protocol import ProtocolError
from ai_task_orchestra.model_backend.runner import RunnerLauncher, RunnerProcess, probe_engine
from ai_task_orchestra.model_backend.scheduler import Limits, Scheduler

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit codes: 0 stopped, 2 usage or configuration, 3 model not downloadable."""
    arguments = _parser().parse_args(argv)
    configure_logging()
    exit_on_sigterm()
    try:
        digests = DigestStore(model_file.default_cache())
        shelf = Shelf([read_model(name, path, digests) for name, path in _model_files(arguments)])
        asyncio.run(_serve(arguments, shelf, digests))
    except OrchestraError as exc:
        sys.stderr.write(f"{exc.message}\n")
        return EXIT_CODES.get(type(exc), 1)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ai_task_orchestra.model_backend", description=__doc__)
    add = parser.add_argument
    default_model = f"a GGUF file to serve; repeatable (default: {model_file.MODEL_NAME}, fetched once)"
    cores = max(1, (os.cpu_count() or 2) - 1)
    add("--host", default="127.0.0.1", type=_loopback, help="loopback address to listen on (default: %(default)s)")
    add("--port", default=11434, type=int, help="0 takes a free one (default: %(default)s)")
    add("--model", action="append", default=[], type=_named_file, metavar="NAME=PATH", help=default_model)
    add("--no-model", action="store_true", help="start empty; the default model comes by pull")
    add("--threads", default=cores, type=_positive, help="per model; all cores are slower when shared (%(default)s)")
    add("--ctx", default=4096, type=_positive, help="context length in tokens (default: %(default)s)")
    add("--keep-alive", default="5m", type=_keep_alive, help="how long an idle model stays loaded (default: 5m)")
    add("--max-loaded", default=3, type=_positive, help="models in memory (default: %(default)s)")
    add("--max-queue", default=512, type=_count, help="loads that may wait (default: %(default)s)")
    add("--parallel", default=1, type=_positive, help="requests one model answers at once (default: %(default)s)")
    return parser


def _loopback(text: str) -> str:
    if not is_loopback(text):
        raise argparse.ArgumentTypeError("the protocol has no keys: only a loopback address is allowed")
    return text


def _named_file(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise argparse.ArgumentTypeError("expected NAME=PATH")
    return name, Path(path)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("must be a whole number")
    return int(text)


def _positive(text: str) -> int:
    if _count(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def _keep_alive(text: str) -> float:
    try:
        return keep_alive_seconds(text) or 0.0
    except ProtocolError as exc:
        raise argparse.ArgumentTypeError(exc.message) from exc


def _model_files(arguments: argparse.Namespace) -> list[tuple[str, Path]]:
    if arguments.model or arguments.no_model:
        return list(arguments.model)
    return [(model_file.MODEL_NAME, model_file.ensure_model(progress=show_progress()))]


async def _serve(arguments: argparse.Namespace, shelf: Shelf, digests: DigestStore) -> None:
    """1. can the engine run here; 2. take the port; 3. serve; 4. end the runners, which ends their answers."""
    log.info("engine_found", extra={"cpu": await probe_engine()})
    with _listen(arguments.host, arguments.port) as listener:
        async with open_http() as http:
            launcher = RunnerLauncher(http, arguments.threads, arguments.parallel)
            limits = Limits(
                max_loaded=arguments.max_loaded,
                max_queue=arguments.max_queue,
                parallel=arguments.parallel,
                context_length=arguments.ctx,
                keep_alive_seconds=arguments.keep_alive,
            )
            scheduler: Scheduler[RunnerProcess] = Scheduler(launcher.launch, limits)

            def install(path: Path) -> None:
                shelf.add(read_model(model_file.MODEL_NAME, path, digests))

            app = create_app(scheduler, shelf, install)
            config = uvicorn.Config(
                app, log_level="warning", log_config=None, lifespan="off", timeout_graceful_shutdown=1
            )
            server = _Server(config, scheduler)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, server.ask_to_stop)
            host, port = listener.getsockname()[:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            log.info("listening", extra={"url": url, "models": [model.name for model in shelf.all()]})
            try:
                await server.serve(sockets=[listener])
            finally:
                await scheduler.close()


class _Server(uvicorn.Server):
    """Uvicorn that ends the runners first: an answer of many minutes must not hold up the end."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler[RunnerProcess]) -> None:
        super().__init__(config)
        self._scheduler = scheduler

    def ask_to_stop(self) -> None:
        """A second signal does not wait for open answers."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The event loop has the signals; uvicorn would raise them again after an orderly end."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the runners, then the open answers."""
        await self._scheduler.close()
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        raise ConfigurationError(f"port {port} on {host} can't be used ({exc.strerror}): choose another") from exc
    return listener


if __name__ == "__main__":
    sys.exit(main())
