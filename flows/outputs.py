"""Storing results: atomically, inside the output folders only, and never over what belongs to another tenant.

Who a file belongs to is written beside the files, in the folder `.orchestra-owners` of the output folder, so that
workers that share an output folder share that knowledge, too. The record comes before the file: of two tenants who
name the same new path at the same time, one is refused.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ai_task_orchestra.errors import StepError, StepInputError
from ai_task_orchestra.settings import Settings
from flows.paths import below, open_folder, parts_of

_OWN_NAMES: Final = ".orchestra-"
_OWNERS: Final = ".orchestra-owners"
_FIELD: Final = "path"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class OutputPlace:
    """Where a result goes: an output folder and the names below it. `shown` is how the user named it, normalised."""

    root: Path
    names: tuple[str, ...]
    shown: str

    @property
    def record_name(self) -> str:
        """The name of its ownership record."""
        return hashlib.sha256("/".join(self.names).encode()).hexdigest() + ".json"


def resolve_output(text: str, settings: Settings) -> OutputPlace:
    """The place that `text` names: below the first output folder, or below any if absolute.

    Raises:
        StepInputError: it lies outside or can't be used.
    """
    placed = below(text, settings.outputs, field=_FIELD)
    if placed:
        root, names = placed
        place = OutputPlace(root, names, f"{root}/{'/'.join(names)}")
    else:
        names = parts_of(text, field=_FIELD)
        place = OutputPlace(settings.outputs[0], names, "/".join(names))
    if any(name.startswith(_OWN_NAMES) for name in names):
        raise StepInputError(f"{_FIELD}: names that begin with {_OWN_NAMES} are kept for ourselves")
    return place


def write_output(place: OutputPlace, data: bytes, *, tenant: str, check: Callable[[], None] = lambda: None) -> None:
    """Write the file, replacing an earlier one of the same tenant.

    It takes effect at once or not at all: readers see the old or the new content, also after a crash. `check` is
    called right before it does, and prevents it by raising.

    Raises:
        StepInputError: the path belongs to another tenant or to nobody we know, or is no regular file.
        StepError: the file can't be written; retryable when the disk is full.
    """
    with open_folder(place.root, place.names[:-1], field=_FIELD, make=True) as folder, _readable_errors():
        exists = _is_replaceable(place.names[-1], folder)
        _claim(place, tenant, exists=exists)
        _replace(place.names[-1], data, folder, check)


@contextlib.contextmanager
def _readable_errors() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StepError(f"the result can't be stored: {exc.strerror}", retryable=exc.errno in _FULL) from exc


def _is_replaceable(name: str, folder: int) -> bool:
    """Whether there is a file to replace."""
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise StepInputError(f"{_FIELD}: there is something that is no regular file")
    return True


def _claim(place: OutputPlace, tenant: str, *, exists: bool) -> None:
    with open_folder(place.root, (_OWNERS,), field=_FIELD, make=True) as owners:
        owner = _owner(place, owners)
        if owner is None and exists:
            raise StepInputError(f"{_FIELD}: there is a file that no task stored; it is not replaced")
        if owner is None:
            with _temporary(json.dumps({"path": "/".join(place.names), "tenant": tenant}).encode(), owners) as record:
                try:  # a link, unlike a rename, never replaces
                    os.link(record, place.record_name, src_dir_fd=owners, dst_dir_fd=owners)
                    owner = tenant
                except FileExistsError:
                    owner = _owner(place, owners)
    if owner != tenant:
        raise StepInputError(f"{_FIELD}: the path belongs to another tenant")


def _owner(place: OutputPlace, owners: int) -> str | None:
    try:
        fd = os.open(place.record_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=owners)
    except FileNotFoundError:
        return None
    with open(fd, encoding="utf-8") as file:  # noqa: PTH123
        return str(json.load(file)["tenant"])


def _replace(name: str, data: bytes, folder: int, check: Callable[[], None]) -> None:
    with _temporary(data, folder) as temporary:
        check()
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


@contextlib.contextmanager
def _temporary(data: bytes, folder: int) -> Iterator[str]:
    """The name of a new file with this content, on disk; gone afterwards unless it was renamed."""
    name = f"{_OWN_NAMES}{secrets.token_hex(8)}.part"
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123
            file.write(data)
            file.flush()
            os.fsync(fd)
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
