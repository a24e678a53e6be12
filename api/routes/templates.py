"""`/templates`: what can be run, and whether parameters fit."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from api import references, responses, schemas
from api.auth import Caller
from api.documentation import REQUEST_BODY_PARAMETERS, problems
from api.errors import ApiError
from api.guard import json_body
from api.responses import JsonAnswer
from api.rooms import OpenRooms

router = APIRouter(tags=["templates"])


@router.get("/templates", response_model=list[schemas.TemplateSummary], summary="List templates")
async def list_templates(_: Caller, rooms: OpenRooms) -> Response:
    """All usable templates, sorted by name."""
    specs = sorted(rooms.library.templates.values(), key=lambda spec: spec.name)
    return JsonAnswer([responses.template_summary(spec) for spec in specs])


@router.get(
    "/templates/{template_name}",
    response_model=schemas.TemplateDetail,
    summary="Get a template",
    responses=problems(404),
)
async def get_template(template_name: str, _: Caller, rooms: OpenRooms) -> Response:
    """A template with its steps as written in its YAML."""
    return JsonAnswer(responses.template_detail(rooms.library.get(template_name)))


@router.post(
    "/templates/validate",
    response_model=schemas.ValidationAnswer,
    summary="Validate template parameters",
    responses=problems(400, 404, 408, 413, 415, 422),
    openapi_extra=REQUEST_BODY_PARAMETERS,
)
async def validate_parameters(
    _: Caller,
    rooms: OpenRooms,
    body: Annotated[Any, Depends(json_body)],
    template_name: Annotated[str, Query(description="Name of the template to validate parameters for.")],
) -> Response:
    """Whether a task with these parameters would be accepted. Nothing is stored."""
    template = rooms.library.get(template_name)
    if not isinstance(body, dict):
        problem = {"loc": ["body"], "msg": "Input should be an object", "type": "dict_type"}
        raise ApiError(422, "validation_error", "The body must be a JSON object.", errors=[problem])
    check = references.check(template, body)
    answer: dict[str, Any] = {
        "valid": check.valid,
        "missing_parameters": sorted(check.missing),
        "invalid_parameters": sorted(check.invalid),
    }
    return JsonAnswer(answer if check.valid else answer | {"errors": dict(check.errors)})
