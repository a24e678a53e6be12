"""What the OpenAPI document says beyond the code: error answers, request bodies, and the page that shows it."""

from __future__ import annotations

from typing import Any, Final

from ai_task_orchestra.exposure import is_loopback
from ai_task_orchestra.settings import Settings
from api import examples, key_schemas, schemas
from api.guard import MAX_IDEMPOTENCY_KEY

DESCRIPTION: Final = """
Runs AI work on GPU machines: a task is a request to run a template; it waits in a queue by priority (10 is the most
urgent) and after its dependencies, and runs as a Prefect flow.

Times are UTC. A field without a value is absent. Every error is `{"detail": "a sentence", "code": "a stable word"}`,
and every answer carries `X-Request-ID`.
"""

_MEANINGS: Final = {
    400: "Invalid request parameters",
    401: "Missing or invalid API key",
    403: "This API key may not do this",
    404: "Resource not found",
    408: "The body did not arrive in time",
    409: "The present state does not allow it",
    413: "The body is too large",
    415: "The body is not JSON in UTF-8",
    422: "Validation error",
    429: "Too many wrong API keys, or a limit of this API key is used up; `Retry-After` says when to try again",
    500: "Server error",
    503: "The database does not answer; try again",
}


Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """`responses=` for a route: the error answers it can give."""
    return {status: {"model": schemas.Problem, "description": _MEANINGS[status]} for status in statuses}


#: Answers that any route under `/api/v1` can give.
EVERYWHERE: Final = problems(401, 403, 429, 500, 503)


def _body(schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    """A request body. Bodies are read by `api.guard`, out of FastAPI's sight, so they are described by hand."""
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _header(name: str, description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {name: {"description": description, "schema": schema or {"type": "string"}}}


def located(description: str) -> Responses:
    """`responses=` for a route that makes something: the header that says where it is."""
    return {201: {"headers": _header("Location", description)}}


_LOCATION: Final = _header("Location", "Where the task can be read.")

#: What the good answers of `POST /tasks` and `GET /tasks` carry beside their bodies.
CREATED: Final[Responses] = {
    200: {
        "model": schemas.TaskAccepted,
        "description": "The task of an earlier request with this Idempotency-Key.",
        "headers": _LOCATION | _header("Idempotent-Replayed", "`true`"),
    },
    201: {"headers": _LOCATION},
}
COUNTED: Final[Responses] = {
    200: {"headers": _header("X-Total-Count", "How many there are in all.", {"type": "integer"})}
}

BATCH_CREATED: Final[Responses] = {
    200: {
        "model": schemas.BatchAccepted,
        "description": "The batch of an earlier request with this Idempotency-Key.",
        "headers": _header("Location", "Where the batch can be read.") | _header("Idempotent-Replayed", "`true`"),
    },
    201: {"headers": _header("Location", "Where the batch can be read.")},
}


def _idempotent(schema: dict[str, Any]) -> dict[str, Any]:
    """A request that a header makes safe to send twice."""
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "description": "Sent again with the same body, it answers what the first request made.",
        "schema": {"type": "string", "pattern": r"^[!-~]+$", "minLength": 1, "maxLength": MAX_IDEMPOTENCY_KEY},
    }
    return {"parameters": [key], "requestBody": _body(schema)}


def _batch_schema() -> dict[str, Any]:
    """In one piece: references inside it would be looked for at the document's root."""
    schema = schemas.BatchRequest.model_json_schema()
    [(_, item)] = schema.pop("$defs").items()
    schema["properties"]["tasks"]["items"] = item
    return schema


REQUEST_BODY_TASK: Final[dict[str, Any]] = _idempotent(schemas.TaskRequest.model_json_schema())
REQUEST_BODY_BATCH: Final[dict[str, Any]] = _idempotent(_batch_schema())

REQUEST_BODY_PARAMETERS: Final[dict[str, Any]] = {
    "requestBody": _body({"type": "object", "title": "Parameters by name", "examples": [examples.INFERENCE_PARAMETERS]})
}

REQUEST_BODY_KEY: Final[dict[str, Any]] = {"requestBody": _body(key_schemas.KeyRequest.model_json_schema())}
REQUEST_BODY_ROTATION: Final[dict[str, Any]] = {
    "requestBody": _body(key_schemas.RotationRequest.model_json_schema(), required=False)
}


def refine(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's `document` without what is not so: a query has no null, and no error has FastAPI's own shape."""
    schemas_ = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas_.pop(name, None)
    for operations in document["paths"].values():
        for operation in operations.values():
            _without_foreign_errors(operation["responses"])
            for parameter in operation.get("parameters", ()):
                _without_null(parameter["schema"])
    return document


def _without_foreign_errors(responses: dict[str, Any]) -> None:
    if "HTTPValidationError" in str(responses.get("422", "")):
        del responses["422"]


def _without_null(schema: dict[str, Any]) -> None:
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema.update(kinds[0])


def docs_shown(settings: Settings) -> bool:
    """Whether the page and the document are served: as set, else only while nobody outside this machine can ask."""
    return is_loopback(settings.host) if settings.docs is None else settings.docs
