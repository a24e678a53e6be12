"""Landlock: a process gives up, for itself and everything it starts, all files but those it names."""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from ai_task_orchestra.isolation.kernel import LINUX, syscall

# Version 2 is the first that lets files be moved between folders.
FIRST_USABLE_VERSION = 2
SCOPED_VERSION = 6

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_GET_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_ALL_OF_VERSION_1 = (1 << 13) - 1
# From version 6 on: neither signals to, nor abstract Unix sockets of, processes outside.
_SCOPES = 1 | 2
# What makes sense for something that is no folder.
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE

OVERWRITE = _WRITE_FILE | _TRUNCATE
READ = _EXECUTE | _READ_FILE | _READ_DIR
DEVICE = _WRITE_FILE | _READ_FILE | _IOCTL_DEVICE
# Everything but making devices.
WRITE = (_ALL_OF_VERSION_1 & ~(1 << 6 | 1 << 11)) | _REFER | _TRUNCATE


def version() -> int:
    """Which version of Landlock the kernel has; 0 for none."""
    if not LINUX:
        return 0
    try:
        return syscall("landlock", _CREATE_RULESET, None, 0, _GET_VERSION)
    except OSError:
        return 0


def restrict(rules: list[tuple[str, int]]) -> None:
    """Give up everything but `rules`: paths, with what may be done below them. Paths that do not exist are left out.

    It also ends reading the memory of processes outside (`/proc/<pid>/environ` and the like) and tracing them.

    Raises:
        OSError: the kernel can't do it.
    """
    have = version()
    handled = _handled(have)
    attributes = struct.pack("=QQQ", handled, 0, _SCOPES if have >= SCOPED_VERSION else 0)
    size = 24 if have >= SCOPED_VERSION else 8
    ruleset = syscall("landlock", _CREATE_RULESET, attributes, size, 0)
    for path, access in rules:
        _add(ruleset, path, access & handled)
    syscall("landlock", _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _handled(have: int) -> int:
    handled = _ALL_OF_VERSION_1
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEVICE)):
        if have >= since:
            handled |= right
    return handled


def _add(ruleset: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _OF_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", access, fd))
        syscall("landlock", _ADD_RULE, ruleset, _PATH_BENEATH, rule.raw, 0)
    finally:
        os.close(fd)
