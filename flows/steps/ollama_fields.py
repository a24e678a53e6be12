"""The fields that the model steps share, checked: their values come from people.

Every function raises `StepInputError` naming the field, never its value.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import ollama
from pydantic import ValidationError

from ai_task_orchestra.errors import StepInputError
from ai_task_orchestra.settings import Settings
from flows.paths import open_input, resolve_input

MAX_IMAGE_BYTES: Final = 20 * 1024 * 1024
MAX_IMAGES: Final = 32
MAX_TEXTS: Final = 10_000

_SEGMENT: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_])?"
_MODEL_NAME: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{0,2}}(?::{_SEGMENT})?")
# Places a model's name may begin with. Only a name: this system never makes the server fetch a model.
_REGISTRIES: Final = frozenset({"hf.co", "huggingface.co", "registry.ollama.ai"})
_GO_DURATION: Final = re.compile(r"[+-]?(?:0|(?:\d{1,9}(?:\.\d{1,9})?(?:ns|us|µs|ms|s|m|h)){1,6})")
_DATA_URL: Final = re.compile(r"data:image/[a-z0-9.+-]{1,32};base64,")


def model_name(fields: Mapping[str, Any]) -> str:
    """`model`: a name as `ollama list` shows it. A host in front is refused, unless it is a known registry's name."""
    name = fields.get("model")
    if not isinstance(name, str) or not _MODEL_NAME.fullmatch(name) or ".." in name:
        raise StepInputError("model: not a model name (name, name:tag or namespace/name:tag)")
    first, *rest = name.split("/")
    if rest and first not in _REGISTRIES and ("." in first or len(rest) > 1):
        raise StepInputError("model: the name begins with a host; only names of models on the configured server work")
    return name


def text(fields: Mapping[str, Any], name: str) -> str:
    """A required text that is not empty: Ollama takes an empty prompt as "load the model" and answers nothing."""
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise StepInputError(f"{name}: a text that is not empty is needed")
    return value


def optional_text(fields: Mapping[str, Any], name: str) -> str | None:
    """A text, or None."""
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise StepInputError(f"{name}: a text is needed")
    return value


def call_options(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of `options`, `keep_alive` and `format` that are named and given, ready for the client."""
    checks = {"options": _options, "keep_alive": _keep_alive, "format": _format}
    return {name: checks[name](fields[name]) for name in names if fields.get(name) is not None}


def _options(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise StepInputError("options: an object is needed")
    return value


def _keep_alive(value: Any) -> float | str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _GO_DURATION.fullmatch(value):
        return value
    raise StepInputError('keep_alive: a number of seconds or a duration like "5m" is needed')


def _format(value: Any) -> str | dict[str, Any]:
    if value == "json" or isinstance(value, dict):
        return value  # type: ignore[no-any-return]
    raise StepInputError('format: "json" or a JSON schema is needed')


async def images(value: Any, settings: Settings, *, field: str = "images") -> list[bytes]:
    """Images given as base64 text, or as `{"file": path}` inside the input folders.

    Decoded here: the official client opens any string that happens to be a path.
    """
    if not isinstance(value, list) or len(value) > MAX_IMAGES:
        raise StepInputError(f"{field}: a list of at most {MAX_IMAGES} images is needed")
    return [await _image(item, settings, f"{field}[{index}]") for index, item in enumerate(value)]


async def _image(item: Any, settings: Settings, field: str) -> bytes:
    if isinstance(item, str):
        try:
            data = base64.b64decode(_DATA_URL.sub("", item, count=1), validate=True)
        except (binascii.Error, ValueError) as exc:
            raise StepInputError(f"{field}: neither base64 text nor an object with file") from exc
    elif isinstance(item, dict) and item.keys() == {"file"} and isinstance(item["file"], str):
        data = await asyncio.to_thread(_read_image, item["file"], settings, f"{field}.file")
    else:
        raise StepInputError(f'{field}: base64 text or {{"file": path}} is needed')
    if not 0 < len(data) <= MAX_IMAGE_BYTES:
        raise StepInputError(f"{field}: an image of 1 to {MAX_IMAGE_BYTES} bytes is needed")
    return data


def _read_image(name: str, settings: Settings, field: str) -> bytes:
    path = resolve_input(name, settings, field=field)
    try:
        with open(open_input(path, settings, field=field), "rb") as file:  # noqa: PTH123
            return file.read(MAX_IMAGE_BYTES + 1)
    except OSError as exc:
        raise StepInputError(f"{field}: the file can't be read ({exc.strerror})") from exc


async def messages(fields: Mapping[str, Any], settings: Settings) -> list[ollama.Message]:
    """`messages`: role and content each; images as in `images`."""
    value = fields.get("messages")
    if not isinstance(value, list) or not value:
        raise StepInputError("messages: a list of messages is needed")
    return [await _message(item, settings, f"messages[{index}]") for index, item in enumerate(value)]


async def _message(item: Any, settings: Settings, field: str) -> ollama.Message:
    if not isinstance(item, dict):
        raise StepInputError(f"{field}: an object with role and content is needed")
    checked = dict(item)
    if checked.get("images") is not None:
        decoded = await images(checked["images"], settings, field=f"{field}.images")
        checked["images"] = [ollama.Image(value=data) for data in decoded]
    try:
        return ollama.Message.model_validate(checked)
    except ValidationError as exc:
        raise StepInputError(f"{field}: {_reasons(exc)}") from exc


def tools(fields: Mapping[str, Any]) -> list[ollama.Tool] | None:
    """`tools`: descriptions of functions, as Ollama takes them."""
    value = fields.get("tools")
    if value is None:
        return None
    if not isinstance(value, list):
        raise StepInputError("tools: a list of tools is needed")
    try:
        return [ollama.Tool.model_validate(item) for item in value]
    except ValidationError as exc:
        raise StepInputError(f"tools: {_reasons(exc)}") from exc


def texts(fields: Mapping[str, Any]) -> str | Sequence[str]:
    """`input` of an embedding: a text or a list of texts."""
    value = fields.get("input")
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and 0 < len(value) <= MAX_TEXTS and all(isinstance(item, str) for item in value):
        return value
    raise StepInputError(f"input: a text or a list of 1 to {MAX_TEXTS} texts is needed")


def _reasons(exc: ValidationError) -> str:
    errors = exc.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}" for error in errors[:5])
