"""The API as a process: `python -m api.serve`, or `orchestra api`, which calls `serve`.

1. the address is bound, so that a taken port is told before anything is opened;
2. the application's lifespan is entered here, not by uvicorn: a start that fails raises our own error;
3. uvicorn serves until SIGTERM or SIGINT, and lets requests under way finish;
4. the lifespan closes, then the process ends with code 0. What can't be closed in time, because PostgreSQL or Prefect
   says nothing, ends with it: an API may be killed at any point.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Final

import uvicorn

from ai_task_orchestra.errors import ConfigurationError, OrchestraError, UnreachableError
from ai_task_orchestra.logs import configure_logging
from ai_task_orchestra.settings import Settings, load_settings
from api.main import create_app

logger = logging.getLogger(__name__)

GRACE_SECONDS: Final = 3
CLOSE_SECONDS: Final = 8
EXIT_CONFIGURATION: Final = 2
EXIT_UNREACHABLE: Final = 3


async def serve(settings: Settings) -> None:
    """Serve until a signal; returns when everything is closed. The process ends soon after in any case.

    Raises:
        ConfigurationError: the address can't be used, or it may be reached from outside and there is no key.
        UnreachableError: the database does not answer.
    """
    with listening(settings.host, settings.port) as listener:  # 1.
        app = create_app(settings)
        async with app.router.lifespan_context(app):  # 2.
            config = uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
            await _Server(config).serve(sockets=[listener])  # 3.
            last = threading.Timer(CLOSE_SECONDS, _end)
            last.daemon = True
            last.start()
    # 4.


def _end() -> None:
    logger.warning("not_everything_closed", extra={"seconds": CLOSE_SECONDS})
    os._exit(0)


class _Server(uvicorn.Server):
    """uvicorn's server, which would raise the signal again after serving and so skip what must still be closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to `host` and `port`; port 0 takes a free one.

    Raises:
        ConfigurationError: it can't be bound.
    """
    bare = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in bare else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((bare, port))
        except OSError as exc:
            why = exc.strerror or str(exc)
            message = f"can't listen on {host} port {port}: {why}; set ORCHESTRA_HOST or ORCHESTRA_PORT"
            raise ConfigurationError(message) from exc
        yield listener


def main() -> int:
    """Run with the environment's settings; the exit code."""
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        asyncio.run(serve(settings))
    except UnreachableError as exc:
        return _fail(exc, EXIT_UNREACHABLE)
    except OrchestraError as exc:
        return _fail(exc, EXIT_CONFIGURATION)
    return 0


def _fail(error: OrchestraError, code: int) -> int:
    sys.stderr.write(f"error: {error.message}\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
