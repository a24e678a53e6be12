"""`read_files`: reads texts from the input folders."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final

from ai_task_orchestra.errors import StepInputError
from ai_task_orchestra.settings import Settings
from flows.paths import below, contained, open_input, parts_of
from flows.steps import fields as checked
from flows.steps.base import StepContext
from flows.text import storable

_MAX_FILES: Final = 1000
_MAX_LOOKED_AT: Final = 100_000
_WILDCARD: Final = re.compile(r"[*?\[]")


class ReadFiles:
    """Reads files by path or glob (`*`, `?`, `[...]`, `**`), sorted by name, each once.

    With several files each one's text stands below a line with its name. Together they may have as many bytes as a
    step's output: a text that is cut would be analysed as if it were whole.
    """

    type: ClassVar[str] = "read_files"

    async def run(self, fields: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        """Fields: files."""
        patterns = checked.texts(fields, "files")
        if not patterns:
            raise StepInputError("files: a list of paths or globs is needed")
        return await asyncio.to_thread(_read_all, patterns, context.settings)


def _read_all(patterns: list[str], settings: Settings) -> dict[str, Any]:
    found: dict[str, Path] = {}
    for pattern in patterns:
        matches = _matches(pattern, settings)
        if not matches:
            raise StepInputError(f"files: nothing in the input folders matches {pattern}")
        found = matches | found
        if len(found) > _MAX_FILES:
            raise StepInputError(f"files: more than {_MAX_FILES} files match")
    names = sorted(found)
    texts = _texts({name: found[name] for name in names}, settings)
    if len(names) == 1:
        return {"files": names, "content": texts[names[0]]}
    return {"files": names, "content": "\n\n".join(f"=== {name} ===\n{text}" for name, text in texts.items())}


def _matches(pattern: str, settings: Settings) -> dict[str, Path]:
    """Files by their name relative to the input folder; of the same name in two folders the first counts."""
    placed = below(pattern, settings.inputs, field="files")
    roots = (placed[0],) if placed else settings.inputs
    names = placed[1] if placed else parts_of(pattern, field="files")
    matches: dict[str, Path] = {}
    for root in roots:
        for path in _candidates(root, names):
            if (real := contained(path, settings)) is not None:
                matches.setdefault(path.relative_to(root).as_posix(), real)
    return matches


def _candidates(root: Path, names: tuple[str, ...]) -> list[Path]:
    """The file of exactly that name, else what matches it as a pattern."""
    literal = root.joinpath(*names)
    if literal.exists() or not any(_WILDCARD.search(name) for name in names):
        return [literal]
    try:
        paths = list(islice(root.glob("/".join(names)), _MAX_LOOKED_AT + 1))
    except ValueError as exc:  # "a**b"
        raise StepInputError("files: ** must be a whole part of the path") from exc
    if len(paths) > _MAX_LOOKED_AT:
        raise StepInputError(f"files: the pattern matches more than {_MAX_LOOKED_AT} names")
    return paths


def _texts(files: Mapping[str, Path], settings: Settings) -> dict[str, str]:
    texts, left = {}, settings.max_output_bytes
    for name, path in files.items():
        try:
            with open(open_input(path, settings, field="files"), "rb") as file:  # noqa: PTH123
                data = file.read(left + 1)
        except OSError as exc:
            raise StepInputError(f"files: {name} can't be read ({exc.strerror})") from exc
        left -= len(data)
        if left < 0:
            raise StepInputError(
                f"files: together they have more than {settings.max_output_bytes} bytes (ORCHESTRA_MAX_OUTPUT_BYTES)"
            )
        texts[name] = _text(name, data)
    return texts


def _text(name: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise StepInputError(f"files: {name} is no text in UTF-8") from exc
    if storable(text) != text:
        raise StepInputError(f"files: {name} is no text: it holds the NUL character")
    return text
