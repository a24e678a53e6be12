"""The bodies and errors of the Ollama protocol.

Every error is `{"error": "<sentence>"}`. Fields that this backend does not have are refused where leaving them out
would change the answer (images, tools, ...), and ignored where it would not.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError


class ProtocolError(Exception):
    """An answer that is an error: `status` until the first byte is out, an NDJSON error line after it."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(message)


def now() -> str:
    """The present time as the protocol writes it."""
    return timestamp(datetime.now(UTC))


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, ending in `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _whole(value: Any) -> Any:
    """Go's JSON has one kind of number: 8.0 is a fine integer option, true is none."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Whole = Annotated[int, BeforeValidator(_whole)]
KeepAlive = Annotated[float | str | None, Field(default=None)]


DEFAULT_TEMPERATURE: Final = 0.2
DEFAULT_REPEAT_PENALTY: Final = 1.1


class _Body(BaseModel):
    """Unknown fields are ignored, as Ollama does; wrong JSON types are not."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Options(_Body):
    """What may be chosen per request. `num_ctx` other than the loaded one means a reload.

    The defaults are Ollama's but for two, which stand for a model's own parameters there: the temperature that the
    makers of the small model recommend, and a penalty without which it answers short questions in endless circles.
    """

    num_ctx: Whole | None = None
    num_predict: Whole = -1
    num_keep: Whole = 4
    temperature: float = DEFAULT_TEMPERATURE
    top_k: Whole = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: Whole = 64
    repeat_penalty: float = DEFAULT_REPEAT_PENALTY
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: Whole = -1
    stop: Annotated[list[str], BeforeValidator(_listed)] = []


class Message(_Body):
    """One turn of a chat."""

    role: str
    content: str = ""
    images: list[str] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ModelRequest(_Body):
    """What every request to a model may say. `name` is the older spelling of `model`."""

    model: str = ""
    name: str = ""
    stream: bool | None = None
    keep_alive: KeepAlive
    options: Options | None = None
    truncate: bool | None = None

    @property
    def model_name(self) -> str:
        """The model as the caller wrote it.

        Raises:
            ProtocolError: 400, none given.
        """
        if not (self.model or self.name):
            raise ProtocolError(400, "model is required")
        return self.model or self.name


class TextRequest(ModelRequest):
    """What `generate` and `chat` share."""

    format: Literal["json", ""] | dict[str, Any] | None = None
    think: bool | str | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = None


class GenerateRequest(TextRequest):
    """`POST /api/generate`."""

    prompt: str = ""
    system: str = ""
    raw: bool | None = None
    suffix: str = ""
    images: list[str] | None = None
    template: str = ""
    context: list[Whole] | None = None


class ChatRequest(TextRequest):
    """`POST /api/chat`."""

    messages: list[Message] | None = None
    tools: list[Any] | None = None


class EmbedRequest(ModelRequest):
    """`POST /api/embed`."""

    input: str | list[str] | None = None
    dimensions: Whole | None = None


class EmbeddingsRequest(ModelRequest):
    """`POST /api/embeddings`, the older form."""

    prompt: str = ""


class ShowRequest(ModelRequest):
    """`POST /api/show`."""


class PullRequest(ModelRequest):
    """`POST /api/pull`."""


Body = TypeVar("Body", bound=_Body)


def parse(kind: type[Body], raw: bytes) -> Body:
    """The request body as `kind`.

    Raises:
        ProtocolError: 400; the message names the field, never its value.
    """
    if not raw.strip():
        raise ProtocolError(400, "missing request body")
    try:
        data = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(400, f"invalid JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise ProtocolError(400, "the request body must be a JSON object")
    given = {key: value for key, value in data.items() if value is not None}  # null means "not given", as in Go
    try:
        return kind.model_validate(given)
    except ValidationError as exc:
        problems = exc.errors(include_url=False, include_input=False, include_context=False)
        first = problems[0]
        if first["loc"][:1] == ("format",):
            raise ProtocolError(400, 'invalid format; expected "json" or a valid JSON Schema object') from exc
        raise ProtocolError(400, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from exc


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
