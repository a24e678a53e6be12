"""The tree of our errors.

    OrchestraError
    ├── ConfigurationError      a setting, port, folder or installation that can't be used (CLI exit 2)
    ├── UnreachableError        a server that should answer does not (CLI exit 3)
    ├── RefusedError            the API does not accept our key, or the key may not do this (CLI exit 4)
    ├── InvalidRequestError     the API does not accept what we sent (CLI exit 2)
    ├── NotFoundError           a task, template, key or batch that does not exist (CLI exit 4)
    │   └── UnknownDependencyError
    ├── ConflictError           the present state does not allow the request (CLI exit 4)
    │   ├── DependencyFailedError
    │   ├── IdempotencyMismatchError
    │   └── IdempotencyBusyError
    ├── DispatchError           Prefect did not take a flow run
    ├── TemplateError           a template file that can't be used: path, line, reason
    ├── ParameterError          parameters that do not fit their template
    └── StepError               a step that failed; carries the step's name and whether a retry may help
        ├── ModelError          the model server: unavailable, out of memory, protocol broken
        │   ├── ModelNotFoundError
        │   └── ModelOutputError
        ├── GitError            clone or checkout failed
        ├── ScriptError         a script or command ended with a code other than 0
        ├── LimitError          a program was stopped because it used too much
        ├── IsolationError      a program can't be kept apart as the settings ask for
        ├── StepInputError      a field's value can't be used (path outside its folder, refused URL, ...)
        ├── StepTimeoutError    a step's time ran out
        ├── StaleAttemptError   the task was taken from this attempt's worker
        └── InternalStepError   a bug of ours; the message holds no more than its kind

Domain errors know no HTTP: `api.errors` maps them by walking the class's MRO.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class OrchestraError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str | None = None) -> None:
        self.message = message or (self.__doc__ or "").splitlines()[0]
        super().__init__(self.message)


class ConfigurationError(OrchestraError):
    """The configuration can't be used."""

    code = "configuration"


class UnreachableError(OrchestraError):
    """A server that should answer does not."""

    code = "unreachable"


class RefusedError(OrchestraError):
    """The API refuses this key."""

    code = "refused"


class InvalidRequestError(OrchestraError):
    """The API does not accept the request."""

    code = "invalid_request"


class NotFoundError(OrchestraError):
    """There is no such thing."""

    code = "not_found"


class UnknownDependencyError(NotFoundError):
    """A task in depends_on does not exist."""

    code = "unknown_dependency"


class ConflictError(OrchestraError):
    """The present state does not allow this."""

    code = "conflict"


class DependencyFailedError(ConflictError):
    """A task in depends_on already failed or was cancelled."""

    code = "dependency_failed"


class IdempotencyMismatchError(ConflictError):
    """This Idempotency-Key was used for another request."""

    code = "idempotency_mismatch"


class IdempotencyBusyError(ConflictError):
    """The first request with this Idempotency-Key is still being written."""

    code = "idempotency_busy"


class DispatchError(OrchestraError):
    """Prefect did not take the flow run."""

    code = "dispatch"


class TemplateError(OrchestraError):
    """A template can't be used.

    `line` counts from 1; None where the file as a whole is meant.
    """

    code = "bad_template"

    def __init__(self, message: str, *, path: Path | None = None, line: int | None = None) -> None:
        self.path, self.line, self.reason = path, line, message
        where = f"{path}:{line}: " if path and line else f"{path}: " if path else ""
        super().__init__(f"{where}{message}")


class ParameterError(OrchestraError):
    """The parameters do not fit their template.

    `problems` maps a parameter's name to one readable reason; it never holds a value.
    """

    code = "invalid_parameters"

    def __init__(self, problems: dict[str, str]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in sorted(problems.items())))


class StepError(OrchestraError):
    """A step failed.

    `retryable` alone decides whether a step's `retries` are used. `step` is filled in by the compiler.
    """

    code = "step_failed"

    def __init__(self, message: str | None = None, *, retryable: bool = False, step: str | None = None) -> None:
        self.retryable = retryable
        self.step = step
        super().__init__(message)


class ModelError(StepError):
    """The model server could not answer."""

    code = "model_error"


class ModelNotFoundError(ModelError):
    """The model server does not have this model."""

    code = "model_not_found"


class ModelOutputError(ModelError):
    """The model's answer can't be used."""

    code = "bad_model_output"


class GitError(StepError):
    """A git command failed."""

    code = "git_error"


class ScriptError(StepError):
    """A script or command failed.

    `exit_code` is negative for a signal, as in `subprocess`.
    """

    code = "script_failed"

    def __init__(self, message: str, *, exit_code: int, retryable: bool = True) -> None:
        self.exit_code = exit_code
        super().__init__(message, retryable=retryable)


class LimitError(StepError):
    """A program reached a limit and was stopped.

    `limit` is one of memory, cpu, processes, disk, files, full-disk.
    """

    code = "limit_reached"

    def __init__(self, message: str, *, limit: str) -> None:
        self.limit = limit
        super().__init__(message, retryable=limit == "full-disk")


class IsolationError(StepError):
    """The program can't be kept apart as the settings ask for."""

    code = "isolation"


class StepInputError(StepError):
    """A step's field has a value that can't be used."""

    code = "bad_step_input"


class StepTimeoutError(StepError):
    """A step's time ran out."""

    code = "timeout"


class StaleAttemptError(StepError):
    """The task was taken from this attempt's worker; this attempt publishes nothing."""

    code = "stale_attempt"


class InternalStepError(StepError):
    """Something unexpected happened."""

    code = "internal"
