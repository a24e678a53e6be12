"""What the exit code of `orchestra` says."""

from __future__ import annotations

from typing import Final

from ai_task_orchestra.errors import (
    ConfigurationError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    OrchestraError,
    ParameterError,
    RefusedError,
    TemplateError,
    UnreachableError,
)

OK: Final = 0
TASK_FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
REFUSED: Final = 4

_CODES: Final[dict[type[OrchestraError], int]] = {
    ConfigurationError: USAGE,
    InvalidRequestError: USAGE,
    ParameterError: USAGE,
    TemplateError: USAGE,
    UnreachableError: UNREACHABLE,
    RefusedError: REFUSED,
    NotFoundError: REFUSED,
    ConflictError: REFUSED,
}


def exit_code(error: OrchestraError) -> int:
    """The exit code for an error: its own class's, else its nearest ancestor's."""
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    return TASK_FAILED
