"""Shapes of requests and answers about API keys and the audit, as the OpenAPI document shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from ai_task_orchestra.protocol import PRIORITIES
from api import examples
from api.identity import DEFAULT_SCOPES, DEFAULT_TENANT
from api.keys import LONGEST_OVERLAP, MAX_NAME, MAX_REQUESTS_PER_MINUTE, MAX_TASKS, MAX_TEMPLATES, OVERLAP, TENANT
from api.schemas import exactly

Scope = Literal["read", "submit", "admin"]
TaskCount = Annotated[int, Field(ge=1, le=MAX_TASKS)]
TemplateName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class KeyRequest(BaseModel):
    """A request to make an API key. A limit that is left out does not exist."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [examples.KEY_REQUEST]})

    name: str = Field(description="Who or what it is for.", min_length=1, max_length=MAX_NAME)
    tenant: str = Field(
        default=DEFAULT_TENANT,
        description="Whose tasks it makes and sees; those of other tenants do not exist for it.",
        pattern=f"^{TENANT.pattern}$",
    )
    scopes: list[Scope] = Field(
        default=list(DEFAULT_SCOPES),
        description="`read` looks at tasks, `submit` makes and changes them, `admin` sees to keys and the audit.",
        min_length=1,
    )
    expires_at: Annotated[AwareDatetime, Field(strict=False)] | None = Field(
        default=None, description="When it ends by itself."
    )
    templates: list[TemplateName] | None = Field(
        default=None, description="The templates it may use.", min_length=1, max_length=MAX_TEMPLATES
    )
    max_priority: int | None = Field(
        default=None,
        ge=PRIORITIES[0],
        le=PRIORITIES[-1],
        description="Its ceiling: a task that asks for more gets this, and the answer says so.",
    )
    max_queued: TaskCount | None = Field(default=None, description="Queued tasks at once; one more is answered 429.")
    max_running: TaskCount | None = Field(default=None, description="Running tasks at once; the others wait.")
    requests_per_minute: int | None = Field(
        default=None, ge=1, le=MAX_REQUESTS_PER_MINUTE, description="More are answered 429 with `Retry-After`."
    )


class RotationRequest(BaseModel):
    """How a key is rotated."""

    model_config = ConfigDict(extra="forbid", strict=True)

    overlap_seconds: int = Field(
        default=int(OVERLAP.total_seconds()),
        ge=0,
        le=int(LONGEST_OVERLAP.total_seconds()),
        description="How long the key's present text is still accepted.",
    )


@exactly(examples.KEY_DESCRIBED)
class KeyDescribed(TypedDict):
    """An API key, without the key."""

    id: str
    name: str
    tenant: str
    prefix: Annotated[str, Field(description="How the key begins, to recognise it by.")]
    scopes: list[Scope]
    status: Literal["active", "revoked", "expired"]
    created_at: datetime
    expires_at: NotRequired[datetime]
    revoked_at: NotRequired[datetime]
    last_used_at: NotRequired[Annotated[datetime, Field(description="To the minute.")]]
    previous_expires_at: NotRequired[
        Annotated[datetime, Field(description="Until when its text before the last rotation is accepted.")]
    ]
    templates: NotRequired[list[str]]
    max_priority: NotRequired[int]
    max_queued: NotRequired[int]
    max_running: NotRequired[int]
    requests_per_minute: NotRequired[int]


@exactly(examples.KEY_SHOWN)
class KeyShown(KeyDescribed):
    """An API key, shown this once."""

    key: str


@exactly(examples.AUDIT_LISTED)
class AuditListed(TypedDict):
    """One thing that happened."""

    id: int
    at: datetime
    kind: Annotated[str, Field(description="`task_created`, `task_cancelled`, `priority_changed`, `key_created`, ...")]
    task_id: NotRequired[str]
    key_id: NotRequired[Annotated[str, Field(description="The API key that was changed.")]]
    actor: NotRequired[Annotated[str, Field(description="Whose key asked for it; absent for what Prefect did.")]]
    actor_key_id: NotRequired[Annotated[str, Field(description="Absent for the operator's own keys.")]]
    tenant: NotRequired[str]
    request_id: NotRequired[Annotated[str, Field(description="The `X-Request-ID` of that request's answer.")]]
    flow_run_id: NotRequired[str]
    detail: Annotated[dict[str, Any], Field(description="What changed.")]
