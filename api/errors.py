"""Errors on their way out: every one becomes `{"detail": "<a sentence>", "code": "<a stable word>"}`.

Domain errors know no HTTP; their status is found by walking the class's MRO in `STATUSES`. Validation errors add
`errors: [{loc, msg, type}]`. Nothing here repeats a value that was sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import asyncpg
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy import exc as sql
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ai_task_orchestra import errors as domain
from api.database import is_away, is_full
from api.responses import JsonAnswer

MAX_NAME: Final = 200
MAX_NAMED: Final = 100
RETRY_AFTER_SECONDS: Final = "2"

#: Domain error -> status. The nearest class in the MRO counts.
STATUSES: Final[dict[type[BaseException], int]] = {
    domain.RefusedError: 403,
    domain.LimitError: 429,
    domain.InvalidRequestError: 422,
    domain.NotFoundError: 404,
    domain.ConflictError: 409,
    domain.IdempotencyMismatchError: 422,
    domain.DependencyCycleError: 422,
    domain.ParameterError: 400,
    domain.UnreachableError: 503,
    domain.DispatchError: 503,
    domain.OrchestraError: 500,
}

#: What PostgreSQL's absence or exhaustion looks like: worth trying again, unlike a statement that is wrong.
STORAGE_ERRORS: Final[tuple[type[Exception], ...]] = (
    sql.OperationalError,
    sql.InterfaceError,
    sql.TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.InsufficientResourcesError,
    OSError,
)

_SENTENCES: Final = {
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not know this method."),
}


class ApiError(Exception):
    """A request that can't be served, in HTTP's words: raised by what reads requests, never by the domain."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.headers, self.errors = headers, errors

    def answer(self) -> JsonAnswer:
        body: dict[str, Any] = {"detail": self.detail, "code": self.code}
        if self.errors:
            body["errors"] = list(self.errors)
        return JsonAnswer(body, self.status, headers=self.headers)


def install(app: FastAPI) -> None:
    """Route every expected error of `app` through this module. Unexpected ones are `api.envelope`'s."""
    handlers: dict[type[Exception], Any] = {
        ApiError: _api_error,
        domain.OrchestraError: _domain_error,
        RequestValidationError: _validation_error,
        HTTPException: _http_error,
        sql.DBAPIError: _statement_error,
    }
    for error, handler in (handlers | dict.fromkeys(STORAGE_ERRORS, _storage_error)).items():
        app.add_exception_handler(error, handler)


def internal_error() -> ApiError:
    """What a client sees of an error that nobody expected."""
    return ApiError(
        500, "internal_error", "The server could not answer; its log has the reason under this request's id."
    )


def validation_error(problems: Iterable[Mapping[str, Any]], *, where: str | None = None) -> ApiError:
    """422 for pydantic's `problems`; `where` is put before each location (`body`)."""
    listed = [
        {
            "loc": [*([where] if where else []), *(_short(part) for part in problem["loc"])],
            "msg": problem["msg"],
            "type": problem["type"],
        }
        for problem in problems
    ][:MAX_NAMED]
    said = "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in listed[:5])
    more = f"; and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ApiError(422, "validation_error", f"The request is not valid: {said}{more}", errors=listed)


def parameter_error(error: domain.ParameterError) -> ApiError:
    """400 whose detail names every wrong parameter, sorted."""
    names = sorted(error.problems)
    said = "; ".join(f"{_short(name)}: {error.problems[name]}" for name in names[:MAX_NAMED])
    more = f"; and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ApiError(
        STATUSES[domain.ParameterError], error.code, f"The parameters do not fit the template: {said}{more}"
    )


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to try again: whole seconds, at least one."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def status_of(error: BaseException) -> int:
    """The HTTP status of a domain error."""
    for cls in type(error).__mro__:
        if cls in STATUSES:
            return STATUSES[cls]
    return 500


async def _api_error(_: Request, error: ApiError) -> JsonAnswer:
    return error.answer()


def domain_error(error: domain.OrchestraError) -> ApiError:
    """The answer to a domain error. One that has none is raised again: the envelope logs it and hides its text."""
    if isinstance(error, domain.ParameterError):
        return parameter_error(error)
    status = status_of(error)
    if status == 500:
        raise error
    headers = {"Retry-After": RETRY_AFTER_SECONDS} if status == 503 else None
    if isinstance(error, domain.LimitError):
        headers = retry_after(error.retry_after_seconds)
    return ApiError(status, error.code, error.message, headers=headers)


async def _domain_error(_: Request, error: domain.OrchestraError) -> JsonAnswer:
    return domain_error(error).answer()


async def _validation_error(_: Request, error: RequestValidationError) -> JsonAnswer:
    return validation_error(error.errors()).answer()


async def _http_error(_: Request, error: HTTPException) -> JsonAnswer:
    phrase = HTTPStatus(error.status_code).phrase
    code, detail = _SENTENCES.get(error.status_code, (phrase.lower().replace(" ", "_"), f"{phrase}."))
    return ApiError(error.status_code, code, detail, headers=error.headers).answer()


async def _storage_error(_: Request, error: Exception) -> JsonAnswer:
    headers = {"Retry-After": RETRY_AFTER_SECONDS}
    if is_full(error):
        return ApiError(503, "storage_full", "The database has no room left.", headers=headers).answer()
    return ApiError(503, "storage_unavailable", "The database does not answer; try again.", headers=headers).answer()


async def _statement_error(request: Request, error: sql.DBAPIError) -> JsonAnswer:
    """SQLAlchemy has no class of its own for a PostgreSQL that is just starting."""
    if not is_away(error):
        raise error
    return await _storage_error(request, error)


def _short(part: Any) -> Any:
    """A place in the request; a name that a client made up is cut to a readable length."""
    return part[:MAX_NAME] if isinstance(part, str) else part
