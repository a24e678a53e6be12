"""The shapes of Ollama's answers. Pure functions: requests and models in, JSON values out."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ai_task_orchestra.testing.model_memory import LoadedModel
from ai_task_orchestra.testing.scripted_models import ScriptedModel

_MODIFIED_AT = "2026-01-01T00:00:00Z"


def now() -> str:
    """The present as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def digest(model: ScriptedModel) -> str:
    """A stable stand-in for the manifest's sha256."""
    return hashlib.sha256(model.full_name.encode()).hexdigest()


def details(model: ScriptedModel) -> dict[str, Any]:
    """`details` of tags, ps and show."""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization_level,
    }


def tag(model: ScriptedModel) -> dict[str, Any]:
    """One entry of /api/tags."""
    return _named(model) | {"modified_at": _MODIFIED_AT}


def running(entry: LoadedModel) -> dict[str, Any]:
    """One entry of /api/ps."""
    return _named(entry.model) | {
        "expires_at": entry.expires_at.isoformat().replace("+00:00", "Z"),
        "size_vram": entry.model.vram_bytes,
        "context_length": entry.num_ctx,
    }


def _named(model: ScriptedModel) -> dict[str, Any]:
    return {
        "name": model.full_name,
        "model": model.full_name,
        "size": model.size_bytes,
        "digest": digest(model),
        "details": details(model),
    }


def show(model: ScriptedModel) -> dict[str, Any]:
    """/api/show."""
    return {
        "license": "",
        "modelfile": f"FROM {model.full_name}\n",
        "parameters": "",
        "template": "{{ .Prompt }}",
        "details": details(model),
        "model_info": {
            "general.architecture": model.family,
            f"{model.family}.context_length": model.context_length,
            f"{model.family}.embedding_length": model.embedding_length,
        },
        "capabilities": list(model.capabilities),
        "modified_at": _MODIFIED_AT,
    }


def prompt_text(endpoint: str, body: Mapping[str, Any]) -> str:
    """All text that a request puts before the model."""
    if endpoint == "chat":
        messages = body.get("messages") or []
        return "\n".join(str(message.get("content", "")) for message in messages if isinstance(message, dict))
    if endpoint == "embed":
        given = body.get("input", "")
        return "\n".join(str(text) for text in given) if isinstance(given, list) else str(given)
    return "\n".join(str(body[key]) for key in ("system", "prompt") if body.get(key))


def tokens(text: str) -> list[str]:
    """The text in pieces that join to it again: words with the white space before them."""
    return re.findall(r"\s*\S+|\s+$", text)


def example(schema: Any) -> Any:
    """A value that fits a JSON schema of the common kinds, as constrained decoding would produce one."""
    if not isinstance(schema, dict):
        return {}
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf"):
        if schema.get(choice):
            return example(schema[choice][0])
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: example(inner) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [example(schema.get("items", {"type": "string"})) for _ in range(schema.get("minItems", 1))]
    values = {"string": "text", "integer": schema.get("minimum", 1), "number": schema.get("minimum", 1.5)}
    return values.get(kind, True if kind == "boolean" else None)


def answer_text(model: ScriptedModel, text: str | None, wanted: Any) -> str:
    """What the model says: the script's text, else something of the wanted format, else the model's own text."""
    if text is not None or not wanted:
        return model.text if text is None else text
    return json.dumps({"answer": model.text} if wanted == "json" else example(wanted))


def embedding(text: str, length: int) -> list[float]:
    """A unit vector that depends on the text alone."""
    raw = [
        int.from_bytes(hashlib.sha256(f"{index}:{text}".encode()).digest()[:4], "big") / 2**31 - 1
        for index in range(length)
    ]
    norm = math.sqrt(sum(value * value for value in raw)) or 1.0
    return [value / norm for value in raw]
