"""Removing what programs have left, whatever they did to prevent it."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from pathlib import Path
from typing import Final

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(root: Path) -> None:
    """Remove a folder with everything in it; what can't be removed stays, and is no error.

    Links are never followed, folders that were closed to their owner are opened, and depth does not matter: a folder
    in a folder is moved up first.
    """
    try:
        if stat.S_ISDIR(root.lstat().st_mode):
            root.chmod(0o700)
        top = os.open(root, _FOLDER_FLAGS)
    except OSError:
        return
    try:
        names = itertools.count()
        while _empty(top, top, names):
            pass
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        root.rmdir()


def _empty(folder: int, top: int, names: itertools.count[int]) -> bool:
    """Remove the files in `folder`, move its folders up to `top`, empty and remove those that are there already.

    Whether anything changed.
    """
    changed = False
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=folder)
                elif folder != top:
                    _open_up(entry.name, folder)
                    os.rename(entry.name, f".removed-{os.getpid()}-{next(names)}", src_dir_fd=folder, dst_dir_fd=top)
                else:
                    _remove_folder(entry.name, top, names)
                changed = True
    return changed


def _remove_folder(name: str, top: int, names: itertools.count[int]) -> None:
    _open_up(name, top)
    folder = os.open(name, _FOLDER_FLAGS, dir_fd=top)
    try:
        _empty(folder, top, names)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)


def _open_up(name: str, parent: int) -> None:
    """Its owner may do everything with it."""
    if stat.S_IMODE(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode) & 0o700 != 0o700:
        os.chmod(name, 0o700, dir_fd=parent)
