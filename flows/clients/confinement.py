"""How a program of a task is confined: its level of isolation, its account, what it may see and use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ai_task_orchestra.errors import ConfigurationError, IsolationError, LimitError
from ai_task_orchestra.isolation import visible
from ai_task_orchestra.isolation.machine import memory_bytes
from ai_task_orchestra.isolation.offer import level_for, machine_offer, what_is_open
from ai_task_orchestra.isolation.trial import ACCOUNT_RANGES
from ai_task_orchestra.settings import Settings
from flows.usage import GIGABYTE

# What the operator set for all: language, time, where libraries are, and which graphics processors are ours.
_PASSED_ON: Final = (
    "LANG",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
)
_NAME: Final = "task"
_FOLDERS: Final = {"HOME": ".home", "TMPDIR": ".tmp"}
_LIMIT_KEYS: Final = {"full-disk": "reserve"}
_WORDS: Final = {
    "memory": "it was stopped: it used more than {gb} of memory (ORCHESTRA_PROGRAM_MEMORY_BYTES)",
    "cpu": "it was stopped: it used more than {limit:g} s of processor time (ORCHESTRA_PROGRAM_CPU_SECONDS)",
    "processes": "it was stopped: it had {limit:g} processes and threads (ORCHESTRA_PROGRAM_PROCESSES)",
    "disk": "it was stopped: its files take {gb} (ORCHESTRA_WORKSPACE_BYTES)",
    "files": "it was stopped: its workspace holds {limit:g} files, or folders nested too deep "
    "(ORCHESTRA_WORKSPACE_FILES)",
    "full-disk": "it was stopped: less than {gb} are free on the workspace's disk (ORCHESTRA_DISK_RESERVE_BYTES)",
}


@dataclass(frozen=True)
class Confinement:
    """What stands around one program.

    `level` as in `ai_task_orchestra.isolation`; `account` is a user and a group number (None: our own). `readable` and
    `devices` are paths that exist or not. `limits` are bytes, seconds and numbers by the names that
    `isolation.limits.Limits` knows. `open` says what the program can reach nevertheless.
    """

    workspace: Path
    level: int = 0
    network: bool = True
    account: tuple[int, int] | None = None
    groups: tuple[int, ...] = ()
    readable: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    search_path: str = ""
    open: tuple[str, ...] = ()

    def as_job(self) -> dict[str, Any]:
        """What `isolation.jail.Jail` is made of."""
        return {
            "workspace": str(self.workspace),
            "temporary": str(self.workspace / _FOLDERS["TMPDIR"]),
            "level": self.level,
            "network": self.network,
            "account": self.account,
            "groups": list(self.groups),
            "readable": list(self.readable),
            "devices": list(self.devices),
            "limits": dict(self.limits),
        }

    def environment(self) -> dict[str, str]:
        """The environment every program starts from: nothing of ours beyond what `_PASSED_ON` names.

        HOME and TMPDIR are folders of the workspace, made here; all three are given to the program's account.
        """
        ours = os.environ
        env = {name: value for name, value in ours.items() if name in _PASSED_ON or name.startswith("LC_")}
        env["PATH"] = self.search_path or ours.get("PATH", os.defpath)
        if self.account is not None:  # programs that ask the system find nobody under that number
            env |= dict.fromkeys(("USER", "LOGNAME"), _NAME)
        self.hand_over(self.workspace)
        for variable, name in _FOLDERS.items():
            folder = self.workspace / name
            if not folder.exists():
                folder.mkdir(mode=0o700)
                self.hand_over(folder)
            env[variable] = str(folder)
        return env

    def hand_over(self, path: Path) -> None:
        """Give one file or folder to the program's account."""
        if self.account is not None:
            os.chown(path, *self.account, follow_symlinks=False)

    def may_enter(self, path: Path) -> bool:
        """Whether the program can get at a path: at level 2 every visible one, else as far as the folders let it."""
        return self.level >= 2 or visible.enterable(path, self.account and self.account[0])


def confined(
    settings: Settings, workspace: Path, *, network: bool, readable: Iterable[str] = (), max_bytes: int | None = None
) -> Confinement:
    """The confinement of a program that strangers wrote.

    Args:
        settings: the worker's.
        workspace: the attempt's own folder; the only place where the program may write.
        network: whether it may use the network.
        readable: more paths that it may read.
        max_bytes: how large the workspace may become, if not as the settings say.

    Raises:
        IsolationError: the machine does not offer what the settings ask for, or the account can't get at its workspace.
    """
    offer = machine_offer()
    try:
        level = level_for(settings.isolation, offer)
    except ConfigurationError as exc:
        raise IsolationError(exc.message) from exc
    result = Confinement(
        workspace=workspace,
        level=level,
        network=network,
        account=_account(workspace, offer.accounts),
        groups=visible.device_groups(),
        readable=visible.readable_paths(settings, readable) if level else (),
        devices=visible.device_paths() if level else (),
        limits=_limits(settings, max_bytes),
        search_path=visible.confined_search_path(settings) if level else "",
        open=what_is_open(level, offer),
    )
    if not result.may_enter(workspace):
        raise IsolationError(
            "the account of this task can't enter ORCHESTRA_HOME: every folder on the way to it must be open to all "
            "(chmod o+x)"
        )
    return result


def unconfined(settings: Settings, workspace: Path, *, max_bytes: int) -> Confinement:
    """For a program of the operator's that works with what is the operator's: limits only."""
    return Confinement(workspace=workspace, limits=_limits(settings, max_bytes))


def limit_error(name: str, confinement: Confinement) -> LimitError:
    """What to say of a program that reached a limit."""
    limit = confinement.limits.get(_LIMIT_KEYS.get(name, name), 0)
    return LimitError(_WORDS[name].format(limit=limit, gb=f"{limit / GIGABYTE:.3g} GB"), limit=name)


def _limits(settings: Settings, max_bytes: int | None) -> dict[str, float]:
    return {
        "memory": settings.program_memory_bytes or memory_bytes() // (settings.worker_limit + 1),
        "cpu": settings.program_cpu_seconds or 0,
        "processes": settings.program_processes,
        "open_files": settings.program_open_files,
        "disk": max_bytes or settings.workspace_bytes,
        "files": settings.workspace_files,
        "reserve": settings.disk_reserve_bytes,
    }


def _account(workspace: Path, first: int) -> tuple[int, int] | None:
    """A number that no other attempt has, as far as chance goes: there is no list of them that could be wrong."""
    size = dict(ACCOUNT_RANGES).get(first)
    if size is None:
        return None
    digest = int.from_bytes(hashlib.sha256(os.fsencode(workspace)).digest()[:8], "big")
    return (first + digest % size,) * 2
