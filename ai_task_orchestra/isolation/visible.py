"""What of the machine a confined program may see: programs, libraries, a little of /etc, the input folders, GPUs."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from ai_task_orchestra.settings import Settings

_PROGRAMS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
# Names, addresses, time, certificates, fonts, the loader; no service's own configuration, which may hold passwords.
_OF_ETC: Final = (
    *("alternatives", "ca-certificates", "ca-certificates.conf", "crypto-policies", "pki", "ssl"),
    *("debian_version", "os-release", "lsb-release", "machine-id", "localtime", "timezone", "locale.alias"),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload"),
    *("gai.conf", "host.conf", "hostname", "hosts", "nsswitch.conf", "protocols", "resolv.conf", "services"),
    *("group", "passwd", "shells", "bash.bashrc", "inputrc"),
    *("fonts", "magic", "magic.mime", "mime.types", "mailcap", "papersize", "xml", "sgml", "terminfo"),
    *("gitconfig", "perl", "java", "OpenCL", "vulkan", "glvnd", "ImageMagick-6", "R"),
)
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_GPUS: Final = ("nvidia*", "dri", "kfd", "dxg")


def readable_paths(settings: Settings, more: Iterable[str] = ()) -> tuple[str, ...]:
    """Files and folders that every program may read and run; nothing of ORCHESTRA_HOME but the input folders."""
    wanted = [
        *_PROGRAMS,
        *(f"/etc/{name}" for name in _OF_ETC),
        *_interpreter(),
        *(folder for folder in (*search_path(), *_folders_in("LD_LIBRARY_PATH")) if _is_for_all(folder)),
        *(str(path.expanduser().absolute()) for path in settings.program_dirs),
        *more,
    ]
    hidden = [*_ours(settings)]
    found = [part for path in wanted for part in _without(path, hidden)]
    for path in (os.path.realpath(path) for path in settings.inputs):
        inside = path not in hidden and any(_is_below(path, each) for each in hidden)
        found += [path] if inside else _without(path, hidden)
    return tuple(dict.fromkeys(found))


def search_path() -> list[str]:
    """The folders of PATH, absolute ones only."""
    return _folders_in("PATH", os.defpath)


def confined_search_path(settings: Settings) -> str:
    """PATH for a confined program: without folders that it can't see."""
    visible = [*_PROGRAMS, *_interpreter(), *(str(path.expanduser().absolute()) for path in settings.program_dirs)]
    return os.pathsep.join(
        folder for folder in search_path() if _is_for_all(folder) or any(_is_below(folder, top) for top in visible)
    )


def device_paths() -> tuple[str, ...]:
    """Devices without which nothing works, and graphics processors."""
    return (*_DEVICES, *_gpu_nodes())


def device_groups() -> tuple[int, ...]:
    """The groups that graphics processors are reserved for."""
    nodes = [node for top in map(Path, _gpu_nodes()) for node in (top, *(top.iterdir() if top.is_dir() else ()))]
    return tuple({node.stat().st_gid for node in nodes if node.is_char_device()} - {0})


def enterable(path: Path, account: int | None) -> bool:
    """Whether an account (None: our own) may enter every folder above `path`; groups do not count."""
    if account is None:
        return True
    for folder in path.parents:
        info = folder.stat()
        if not info.st_mode & (0o100 if info.st_uid == account else 0o001):
            return False
    return True


def _gpu_nodes() -> list[str]:
    return sorted(str(path) for pattern in _GPUS for path in Path("/dev").glob(pattern))


def _interpreter() -> list[str]:
    """The Python that runs us, for scripts without a `#!` line."""
    return [sys.prefix, sys.base_prefix]


def _folders_in(variable: str, otherwise: str = "") -> list[str]:
    return [folder for folder in os.environ.get(variable, otherwise).split(os.pathsep) if folder.startswith("/")]


def _is_for_all(folder: str) -> bool:
    """What lies in somebody's home folder may be private, even a folder of programs."""
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        home = "/"
    return folder != "/" and not (home != "/" and _is_below(folder, home))


def _ours(settings: Settings) -> Iterator[str]:
    """What no program may see, wherever it lies."""
    for path in (settings.home, *settings.outputs, settings.git_credentials_file, Path(".env").absolute()):
        yield from {str(path), os.path.realpath(path)}


def _without(path: str, hidden: list[str]) -> Iterator[str]:
    """`path`, or what is in it if something hidden is in it, too; nothing if it is hidden itself."""
    real = os.path.realpath(path)
    if not _meets(path, hidden) and not _meets(real, hidden):
        yield path
    elif not any(_is_below(real, each) for each in hidden):
        for child in _children(Path(real)):
            if not child.is_symlink() or not _meets(os.path.realpath(child), hidden):
                yield from _without(str(child), hidden)


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _meets(path: str, hidden: list[str]) -> bool:
    """Whether something hidden is in it, or it in something hidden."""
    return any(_is_below(path, each) or _is_below(each, path) for each in hidden)


def _is_below(path: str, top: str) -> bool:
    """Whether it is `top` itself or something in it."""
    return path == top or path.startswith(f"{top.rstrip('/')}/")
