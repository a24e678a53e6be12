"""Paths that people name, and the folders they must stay inside of.

A path is split into checked names first (`parts_of`). Inside folders that others write to, it is then walked name by
name from an open folder, so that neither a symbolic link nor a swap in between leads out (`open_folder`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from ai_task_orchestra.errors import StepInputError
from ai_task_orchestra.settings import Settings

_MAX_PATH_BYTES: Final = 1024
_MAX_NAME_BYTES: Final = 200
# Control and private characters and surrogates; line separators; marks that turn the writing direction.
_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Cs", "Co", "Zl", "Zp"})
_DIRECTION_MARKS: Final = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def parts_of(text: str, *, field: str) -> tuple[str, ...]:
    """The names of a relative path, in Unicode's composed form.

    Raises:
        StepInputError: it is empty, absolute or too long, leads upwards, or has a character that a name can't have.
    """
    path = unicodedata.normalize("NFC", text)
    if not path or len(path.encode("utf-8", "surrogatepass")) > _MAX_PATH_BYTES:
        raise StepInputError(f"{field}: a path of 1 to {_MAX_PATH_BYTES} bytes is needed")
    if any(unicodedata.category(char) in _REFUSED_CATEGORIES for char in path) or _DIRECTION_MARKS.search(path):
        raise StepInputError(f"{field}: the path has characters that a file name can't have")
    parts = tuple(path.split("/"))
    # What leads upwards only after another reading (%2e, fullwidth forms) does so for some reader.
    read_again = unquote(unicodedata.normalize("NFKC", path))
    if "\\" in read_again or any(part in ("", ".", "..") for part in (*parts, *read_again.split("/"))):
        raise StepInputError(f"{field}: the path must be relative and lead to a file below its folder")
    if any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        raise StepInputError(f"{field}: a name in the path has more than {_MAX_NAME_BYTES} bytes")
    return parts


def below(text: str, roots: tuple[Path, ...], *, field: str) -> tuple[Path, tuple[str, ...]] | None:
    """For an absolute path: the allowed folder it lies in, and its names below. None: it is relative.

    Raises:
        StepInputError: it is in none of them, or can't be used.
    """
    if not text.startswith("/"):
        return None
    for root in roots:
        prefix = f"{root}/"
        if text.startswith(prefix):
            return root, parts_of(text.removeprefix(prefix), field=field)
    raise StepInputError(f"{field}: the path is in none of the allowed folders")


@contextlib.contextmanager
def open_folder(root: Path, names: tuple[str, ...], *, field: str, make: bool = False) -> Iterator[int]:
    """A descriptor of the folder `names` below `root`, no name of it a symbolic link; with `make` created if missing.

    Raises:
        StepInputError: it does not exist, is no folder, or goes over a symbolic link.
    """
    if make:
        root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            for name in names:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=folder)
                folder = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
                stack.callback(os.close, folder)
        except OSError as exc:
            raise StepInputError(f"{field}: {_why(exc)}") from exc
        yield folder


def open_regular(root: Path, names: tuple[str, ...], *, field: str) -> int:
    """A descriptor for reading the regular file `names` below `root`, not over any symbolic link; the caller closes it.

    Raises:
        StepInputError: there is none.
    """
    with open_folder(root, names[:-1], field=field) as folder:
        try:
            fd = os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError as exc:
            raise StepInputError(f"{field}: {_why(exc)}") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StepInputError(f"{field}: it is no regular file")
    return fd


def resolve_input(text: str, settings: Settings, *, field: str = "file") -> Path:
    """An existing regular file inside one of the input folders.

    Relative paths are looked for in each folder. The folders belong to the operator: a symbolic link in them may
    point to another place inside them, not out of them.

    Raises:
        StepInputError: there is none, or it lies outside.
    """
    placed = below(text, settings.inputs, field=field)
    places = [placed] if placed else [(root, parts_of(text, field=field)) for root in settings.inputs]
    for root, names in places:
        path = contained(root.joinpath(*names), settings)
        if path is not None:
            return path
    raise StepInputError(f"{field}: no such file in the input folders: {text}")


def contained(path: Path, settings: Settings) -> Path | None:
    """The real path, if it is that of a regular file inside the input folders."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    if not real.is_file() or not any(real.is_relative_to(root.resolve()) for root in settings.inputs):
        return None
    return real


def open_input(real: Path, settings: Settings, *, field: str) -> int:
    """A descriptor for reading an input file by its real path; the caller closes it.

    What was found to lie inside the input folders may have been swapped since: it is opened from its folder, over no
    symbolic link.

    Raises:
        StepInputError: it is no such file any more.
    """
    for root in (root.resolve() for root in settings.inputs):
        if real.is_relative_to(root):
            return open_regular(root, real.relative_to(root).parts, field=field)
    raise StepInputError(f"{field}: the path is in none of the allowed folders")


def _why(exc: OSError) -> str:
    if isinstance(exc, FileNotFoundError):
        return "there is no such file"
    if exc.errno in (errno.ELOOP, errno.ENOTDIR):  # what O_NOFOLLOW says about a symbolic link
        return "the path goes over something that is no folder, or a symbolic link"
    return f"it can't be opened ({exc.strerror})"
