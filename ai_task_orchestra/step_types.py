"""The step types that templates may use: their fields, which of them are required, and what each step type outputs.

Only declarations: the API checks templates with them without importing a single step. `flows.steps` implements them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

Kind = Literal["string", "integer", "number", "boolean", "array", "object"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


def kind_of(value: Any) -> Kind | None:
    """The JSON type of a value; None for null. `true` is no integer and 3.0 is none either."""
    match value:
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "number"
        case list() | tuple():
            return "array"
        case Mapping():
            return "object"
    return None


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """A field of a step type and the JSON types its value may have."""

    kinds: tuple[Kind, ...]
    required: bool = False

    def accepts(self, kind: Kind | None) -> bool:
        """Whether a value of this kind fits; an integer is a number, too."""
        return kind in self.kinds or (kind == "integer" and "number" in self.kinds)

    def fits(self, value: Any) -> bool:
        """Whether this value may be the field's."""
        return self.accepts(kind_of(value))

    def may_be(self, kind: Kind) -> bool:
        """Whether some value of this kind fits: a number may turn out to be whole."""
        return self.accepts(kind) or (kind == "number" and "integer" in self.kinds)

    @property
    def expected(self) -> str:
        """The kinds for a message: `string or object`."""
        return " or ".join(self.kinds)


@dataclass(frozen=True)
class StepType:
    """A kind of step.

    `outputs` are the names of the output fields, with the kinds their values have. With `content_default` the field
    `content` may be left out: it is then the output of the step before.
    """

    name: str
    fields: Mapping[str, FieldSpec]
    outputs: Mapping[str, tuple[Kind, ...]] = field(default_factory=dict)
    content_default: bool = False

    @property
    def offers_content(self) -> bool:
        """Whether a step after it can take its `content` from it."""
        return "output" in self.outputs or "content" in self.outputs


def _required(*kinds: Kind) -> FieldSpec:
    return FieldSpec(kinds, required=True)


def _optional(*kinds: Kind) -> FieldSpec:
    return FieldSpec(kinds)


_TEXT: Final[tuple[Kind, ...]] = ("string",)
_COUNT: Final[tuple[Kind, ...]] = ("integer",)
_SECONDS: Final[tuple[Kind, ...]] = ("number",)
_CONTENT: Final = _optional(*KINDS)
# How long the model stays loaded: seconds, or a text such as "10m".
_MODEL_OPTIONS: Final = {"options": _optional("object"), "keep_alive": _optional("string", "number")}
_FORMAT: Final = {"format": _optional("string", "object")}
_PROCESS: Final = {"env": _optional("object"), "network": _optional("boolean")}
_PROCESS_OUTPUTS: Final[Mapping[str, tuple[Kind, ...]]] = {
    "output": _TEXT,
    "stderr": _TEXT,
    "exit_code": _COUNT,
    "truncated": ("boolean",),
    "isolation_level": _COUNT,
}
# What the engine counted and measured, beside a model's answer, and whether that was cut off.
_ENGINE_OUTPUTS: Final[Mapping[str, tuple[Kind, ...]]] = {
    "truncated": ("boolean",),
    "done_reason": _TEXT,
    "prompt_tokens": _COUNT,
    "output_tokens": _COUNT,
    "inference_time_seconds": _SECONDS,
    "load_time_seconds": _SECONDS,
}

_ALL: Final = (
    StepType(
        "ollama_generate",
        {"model": _required("string"), "prompt": _required("string"), "system": _optional("string")}
        | _FORMAT
        | _MODEL_OPTIONS
        | {"images": _optional("array")},
        {"output": _TEXT, "parsed": KINDS, **_ENGINE_OUTPUTS},
    ),
    StepType(
        "ollama_chat",
        {"model": _required("string"), "messages": _required("array")}
        | _FORMAT
        | _MODEL_OPTIONS
        | {"tools": _optional("array")},
        {"output": _TEXT, "message": ("object",), "parsed": KINDS, **_ENGINE_OUTPUTS},
    ),
    StepType(
        "ollama_embed",
        {"model": _required("string"), "input": _required("string", "array")} | _MODEL_OPTIONS,
        {"embeddings": ("array",)},
    ),
    StepType(
        "ollama_analyze",
        {
            "model": _required("string"),
            "prompt": _optional("string"),
            "max_tokens": _optional("integer"),
            "content": _CONTENT,
        },
        {"output": _TEXT, **_ENGINE_OUTPUTS},
        content_default=True,
    ),
    StepType(
        "git_clone",
        {"repo": _required("string"), "branch": _optional("string")},
        {"path": _TEXT, "commit": _TEXT},
    ),
    StepType(
        "execute_script",
        {"script": _required("string"), "args": _optional("array")} | _PROCESS,
        _PROCESS_OUTPUTS,
    ),
    StepType("run_command", {"command": _required("array")} | _PROCESS, _PROCESS_OUTPUTS),
    StepType(
        "store_result",
        {"path": _required("string"), "content": _CONTENT},
        {"path": _TEXT, "bytes": _COUNT},
        content_default=True,
    ),
    StepType("read_files", {"files": _required("array")}, {"files": ("array",), "content": _TEXT}),
    StepType(
        "format_output",
        {"format": _required("string"), "content": _CONTENT},
        {"output": _TEXT},
        content_default=True,
    ),
    StepType(
        "http_request",
        {
            "url": _required("string"),
            "method": _optional("string"),
            "headers": _optional("object"),
            "json": _optional(*KINDS),
        },
        {"status": _COUNT, "output": KINDS, "truncated": ("boolean",)},
    ),
    StepType("wait", {"seconds": _required("number")}),
)

STEP_TYPES: Final[Mapping[str, StepType]] = MappingProxyType({each.name: each for each in _ALL})
