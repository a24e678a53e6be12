"""The folder of templates: read at once, and read again when it has changed.

A file that can't be used is left out and listed in `TemplateLibrary.problems`; it never takes the others down.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ai_task_orchestra.errors import NotFoundError, TemplateError
from ai_task_orchestra.template import TemplateSpec, parse_template
from ai_task_orchestra.template_yaml import MAX_BYTES

logger = logging.getLogger(__name__)

SUFFIXES: Final = (".yaml", ".yml")
# A file changed again within the clock's grain keeps its time and perhaps its size: until its time is this old, its
# content is compared, too.
_SETTLED_NANOSECONDS: Final = 2_000_000_000


@dataclass(frozen=True, slots=True)
class _File:
    """One template file as last read; exactly one of `spec` and `problem` is set."""

    digest: str
    spec: TemplateSpec | None = None
    problem: TemplateError | None = None


@dataclass(frozen=True, slots=True)
class _Contents:
    """Everything the folder held at one time; replaced as a whole, so that readers in other threads see one state."""

    files: Mapping[Path, _File]
    signature: str
    templates: Mapping[str, TemplateSpec]
    problems: tuple[TemplateError, ...]


class TemplateLibrary:
    """The usable templates of `folder` (its `*.yaml` and `*.yml`, no subfolders, no hidden files), sorted by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: object = None
        self._settled = False
        self._contents = _Contents({}, "", MappingProxyType({}), ())
        self.refresh()

    @property
    def signature(self) -> str:
        """Changes whenever the content of the folder does; survives restarts."""
        return self._contents.signature

    @property
    def templates(self) -> Mapping[str, TemplateSpec]:
        """The usable templates by name."""
        return self._contents.templates

    @property
    def problems(self) -> tuple[TemplateError, ...]:
        """One error per file that is left out, and per file whose name for its template another one has, too."""
        return self._contents.problems

    def get(self, name: str) -> TemplateSpec:
        """The template of this name.

        Raises:
            NotFoundError: there is none.
        """
        try:
            return self._contents.templates[name]
        except KeyError:
            raise NotFoundError(f"There is no template {name[:100]!r}.") from None

    def refresh(self) -> bool:
        """Read what has changed since the last time; a look at the files' times if nothing has.

        Returns:
            whether the folder's content is another one now.
        """
        now = time.time_ns()
        try:
            seen = {path: _stamp(path) for path in self._paths()}
        except OSError as exc:
            return self._keep(_unreadable(self.folder, exc))
        if seen == self._seen and self._settled:
            return False
        self._seen = seen
        self._settled = all(stamp[0] + _SETTLED_NANOSECONDS < now for stamp in seen.values())
        return self._keep(_contents(_read(path, self._contents.files.get(path)) for path in sorted(seen)))

    def _paths(self) -> list[Path]:
        with os.scandir(self.folder) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.name.endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
            ]

    def _keep(self, contents: _Contents) -> bool:
        if contents.signature == self._contents.signature:
            return False
        self._contents = contents
        for problem in contents.problems:
            where = {"path": str(problem.path), "line": problem.line, "reason": problem.reason}
            logger.warning("template_left_out", extra=where)
        return True


def _stamp(path: Path) -> tuple[int, int, int]:
    """When and how large; zeros for a file that has just gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _read(path: Path, before: _File | None) -> tuple[Path, _File]:
    """The file as it is now; parsed only if its content is another one than before."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as exc:
        reason = f"it can't be read ({exc.strerror})"
        return path, _File(reason, problem=TemplateError(reason, path=path))
    digest = hashlib.sha256(content).hexdigest()
    if before is not None and before.digest == digest:
        return path, before
    try:
        return path, _File(digest, spec=parse_template(_decode(content, path), path))
    except TemplateError as exc:
        return path, _File(digest, problem=exc)
    except Exception as exc:  # whatever one file does to the parser, the other templates stay usable
        logger.exception("template_parser_failed", extra={"path": str(path)})
        return path, _File(digest, problem=TemplateError(f"it can't be parsed ({type(exc).__name__})", path=path))


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise TemplateError("the file is not UTF-8", path=path, line=line) from exc


def _contents(read: Iterable[tuple[Path, _File]]) -> _Contents:
    """The templates by name; of two with one name the first file's stays, and both files are reported."""
    files = dict(read)
    first: dict[str, TemplateSpec] = {}
    problems = [file.problem for file in files.values() if file.problem is not None]
    for spec in (file.spec for file in files.values() if file.spec is not None):
        other = first.setdefault(spec.name, spec)
        if other is not spec:
            left, kept = spec.path, other.path
            reason = f"a template called {spec.name!r} is in {kept.name} already: this one is left out"
            problems.append(TemplateError(reason, path=left, line=spec.name_line))
            reason = f"a template called {spec.name!r} is in {left.name}, too: that one is left out"
            problems.append(TemplateError(reason, path=kept, line=other.name_line))
    lines = "\n".join(f"{path.name}\0{file.digest}" for path, file in files.items())
    problems.sort(key=lambda problem: (str(problem.path), problem.line or 0))
    return _Contents(
        files,
        hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest(),
        MappingProxyType(dict(sorted(first.items()))),
        tuple(problems),
    )


def _unreadable(folder: Path, exc: OSError) -> _Contents:
    reason = f"the template folder can't be read ({exc.strerror})"
    return _Contents({}, reason, MappingProxyType({}), (TemplateError(reason, path=folder),))
