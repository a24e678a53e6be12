"""A file system of its own for one program: what it may see at its usual places, read-only, and its workspace.

Nothing else exists in there: no other folder, process, socket or device of the machine.
"""

from __future__ import annotations

import os
import stat
import struct

from ai_task_orchestra.isolation.kernel import MACHINE, mount, syscall, umount

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442

_AT_FDCWD = -100
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_READ_ONLY, _NO_SETUID, _NO_DEVICES = 1, 2, 4
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_REC, _MS_SLAVE = 1 << 14, 1 << 19
_MNT_DETACH = 2

# An existing folder that the new root is put together on, unseen by anybody else.
_BASE = "/tmp"
_LINKS_IN_DEV = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}


class PrivateRoot:
    """A root folder put together from parts of the machine's; to be made in a mount namespace of its own.

    1. `add` each part: a copy of the mount is taken, while everything is still in its place
    2. `enter`: the parts are mounted below a new, empty root, which then becomes ours
    """

    def __init__(self) -> None:
        self._parts: list[tuple[str, int, bool]] = []  # where it goes, a detached mount, whether it is a folder
        self._links: dict[str, str] = {}

    def add(self, path: str, *, attributes: int = _READ_ONLY | _NO_SETUID | _NO_DEVICES, at: str | None = None) -> None:
        """Show `path` (at another place: `at`); what does not exist is left out. A link stays a link."""
        place = at or path
        if self._has(place):
            return
        try:
            mode = os.lstat(path).st_mode
        except OSError:  # not there, or not for us
            return
        if stat.S_ISLNK(mode):
            self._links[place] = os.readlink(path)
            real = os.path.realpath(path)
            if not os.path.islink(real):  # a loop
                self.add(real, attributes=attributes)
            return
        flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
        tree = syscall(f"open_tree {path}", _OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)
        _set_attributes(tree, attributes)
        self._parts.append((place, tree, stat.S_ISDIR(mode)))

    def add_writable(self, path: str, *, at: str | None = None) -> None:
        """Show `path` as it is, for reading and writing."""
        self.add(path, attributes=_NO_SETUID | _NO_DEVICES, at=at)

    def add_device(self, path: str) -> None:
        """Show a device, or a folder of devices."""
        self.add(path, attributes=_NO_SETUID)

    def enter(self, *, shared_memory_bytes: int) -> None:
        """Make it our root folder, read-only where nothing else was asked for.

        Raises:
            OSError: the kernel does not let us.
        """
        mount("none", "/", "", _MS_REC | _MS_SLAVE)
        mount("orchestra", _BASE, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=4m")
        for place, tree, is_folder in sorted(self._parts, key=lambda part: part[0]):
            _make(_BASE + place, is_folder=is_folder)
            syscall(
                f"move_mount {place}",
                _MOVE_MOUNT,
                tree,
                b"",
                _AT_FDCWD,
                os.fsencode(_BASE + place),
                _MOVE_MOUNT_F_EMPTY_PATH,
            )
            os.close(tree)
        for place in ("/proc", "/dev/shm"):
            _make(_BASE + place, is_folder=True)
        no_programs = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        mount("proc", f"{_BASE}/proc", "proc", no_programs)
        mount("shm", f"{_BASE}/dev/shm", "tmpfs", no_programs, f"mode=1777,size={shared_memory_bytes}")
        for name, target in self._links.items() | {(f"/dev/{name}", link) for name, link in _LINKS_IN_DEV.items()}:
            _make(_BASE + os.path.dirname(name), is_folder=True)
            if not os.path.lexists(_BASE + name):
                os.symlink(target, _BASE + name)
        self._become_root()

    def _has(self, place: str) -> bool:
        """Whether it is visible already: itself, or a folder around it."""
        return place in self._links or any(
            place == part or (folder and place.startswith(f"{part}/")) for part, _, folder in self._parts
        )

    @staticmethod
    def _become_root() -> None:
        """The old root ends up below the new one's own top, where it is taken off."""
        os.chdir(_BASE)
        syscall("pivot_root", _PIVOT_ROOT[MACHINE], b".", b".")
        umount(".", _MNT_DETACH)
        os.chdir("/")
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        _set_attributes(root, _READ_ONLY, recursive=False)
        os.close(root)


def _set_attributes(tree: int, attributes: int, *, recursive: bool = True) -> None:
    """Only adds: what the machine has mounted read-only stays so."""
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    syscall("mount_setattr", _MOUNT_SETATTR, tree, b"", flags, wanted, len(wanted))


def _make(path: str, *, is_folder: bool) -> None:
    """What a mount is put on: a folder or an empty file, with the folders above."""
    folder = path if is_folder else os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    if not is_folder and not os.path.lexists(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
