"""Log lines: JSON for servers, readable lines for terminals; everything that uses `logging` goes through here.

Secrets are taken out of every line, whoever wrote it: generated API keys and passwords in addresses.
"""

from __future__ import annotations

import logging
import re
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any, Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

FILE_LIMIT_BYTES: Final = 10 * 1024 * 1024
FILES_KEPT: Final = 3
HIDDEN: Final = "***"
# What every such secret has in it (few texts do, and looking is cheap), how it is found, what is left of it.
_SECRETS: Final = (
    ("ato_", re.compile(r"\bato_[0-9A-Za-z]{8,}"), f"ato_{HIDDEN}"),
    ("://", re.compile(r"(?<=://)([^\s/:@]*):([^\s/@]+)(?=@)"), rf"\1:{HIDDEN}"),
)
# Libraries that say at INFO what we say better ourselves.
_CHATTY: Final = ("httpx", "httpcore", "asyncio", "git.cmd", "alembic.runtime.plugins")


def configure_logging(
    level: str = "INFO", *, json: bool | None = None, stream: IO[str] | None = None, file: Path | None = None
) -> None:
    """Send all logging of this process to `file` if one is named, else to `stream` (standard error).

    `json` None: lines for people on a terminal, JSON otherwise. The file is made with the first line, and bounded.
    For use once, at the start of a process.
    """
    stream = stream or sys.stderr
    on_terminal = file is None and stream.isatty()
    as_json = not on_terminal if json is None else json
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _without_colours,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = (
        [structlog.processors.dict_tracebacks, hide_secrets, structlog.processors.JSONRenderer(default=str)]
        if as_json
        else [hide_secrets, structlog.dev.ConsoleRenderer(colors=on_terminal)]
    )
    handler: logging.Handler = logging.StreamHandler(stream)
    if file is not None:
        handler = RotatingFileHandler(file, maxBytes=FILE_LIMIT_BYTES, backupCount=FILES_KEPT, delay=True)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)  # importing Prefect may have raised it
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    logging.captureWarnings(capture=True)


def _without_colours(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """uvicorn adds its message a second time, for terminals."""
    event.pop("color_message", None)
    return event


def hide_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A structlog processor: no key and no password leaves this process in a log line."""
    hidden = _hidden(event)
    return hidden if isinstance(hidden, dict) else event


def without_secrets(text: str) -> str:
    """`text` with generated keys and the passwords of addresses replaced by `***`."""
    for mark, pattern, replacement in _SECRETS:
        if mark in text:
            text = pattern.sub(replacement, text)
    return text


def _hidden(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: _hidden(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item) for item in value]
    return value
