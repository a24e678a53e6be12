"""One supervised program: started, awaited until it is ready, started again when it ends, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ai_task_orchestra.errors import OrchestraError
from ai_task_orchestra.stack.log_files import LogFile

logger = logging.getLogger(__name__)

EXEC_CHILD = Path(__file__).with_name("exec_child.py")
READY_POLL_SECONDS = 0.1


class StartError(OrchestraError):
    """A part of the stack could not be started."""

    code = "start"


async def _always_ready(started_at: float) -> bool:
    return True


@dataclass(frozen=True)
class ChildSpec:
    """What to run, and how to tell that it is ready.

    `environment` is all that the child gets. `ready` is asked again and again, with the Unix time of the start, until
    it says yes; it may raise an error of ours when that will never be. `user` is an account's name (None: as
    ourselves). `death_signal` is what the child gets when we are killed. `stop_seconds` after `stop_signal` it is
    killed. Children of a higher `rank` are stopped first.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    cwd: Path = Path("/")
    ready: Callable[[float], Awaitable[bool]] = _always_ready
    ready_seconds: float = 60.0
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 3.0
    death_signal: signal.Signals = signal.SIGKILL
    rank: int = 0


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a program that ended is started again: doubling, until it lived for a while."""

    first_seconds: float = 0.5
    most_seconds: float = 30.0
    forgiven_after_seconds: float = 60.0

    def next(self, last: float | None, lived: float) -> float:
        if last is None or lived >= self.forgiven_after_seconds:
            return self.first_seconds
        return min(last * 2, self.most_seconds)


@dataclass
class SupervisedChild:
    """A program under supervision.

    Lifecycle: 1. `start()` returns once it is ready; 2. from then on it is started again whenever it ends, with a
    line to `say`; 3. `stop()` ends it and everything it has started.
    """

    spec: ChildSpec
    log: LogFile
    say: Callable[[str], None]
    backoff: Backoff = field(default_factory=Backoff)
    _process: Process | None = None
    _watcher: asyncio.Task[None] | None = None
    _started_at: float = 0.0

    @property
    def pid(self) -> int | None:
        """The running program's process id; None when it is not running."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start and wait until ready; from then on it is watched.

        Raises:
            StartError: it ended first, or was not ready within `ready_seconds`; the message has its last lines.
        """
        process = await self._spawn()
        if not await self._ready_or_ended(process):
            if process.returncode is not None:
                raise StartError(f"{self.spec.name} {how_it_ended(process.returncode)}{self.log.last_words()}")
            raise StartError(
                f"{self.spec.name} was not ready within {self.spec.ready_seconds:g} s{self.log.last_words()}"
            )
        self._watcher = asyncio.create_task(self._watch(process), name=f"watch {self.spec.name}")

    async def run_to_end(self) -> None:
        """Start it as a program that does one thing and ends.

        Raises:
            StartError: it ended with another code than 0, or not within `ready_seconds`.
        """
        process = await self._spawn()
        try:
            async with asyncio.timeout(self.spec.ready_seconds):
                code = await process.wait()
        except TimeoutError as exc:
            raise StartError(f"{self.spec.name} took longer than {self.spec.ready_seconds:g} s") from exc
        if code != 0:
            raise StartError(f"{self.spec.name} {how_it_ended(code)}{self.log.last_words()}")

    async def stop(self, now: asyncio.Event, *, patience_seconds: float | None = None) -> None:
        """Signal, wait, kill what stayed. Once `now` is set it is killed at once.

        `patience_seconds` replaces the specification's `stop_seconds`.
        """
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
        process = self._process
        if process is None:
            return
        begun = time.monotonic()
        family = _descendants(process.pid) if process.returncode is None else []
        if process.returncode is None and not now.is_set():
            _signal(process, self.spec.stop_signal)
            hurry = asyncio.ensure_future(now.wait())
            ended = asyncio.ensure_future(process.wait())
            patience = self.spec.stop_seconds if patience_seconds is None else patience_seconds
            await asyncio.wait({hurry, ended}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            ended.cancel()
        if process.returncode is None:
            family += [one for one in _descendants(process.pid) if one not in family]
            logger.warning("child_killed", extra={"child": self.spec.name, "pid": process.pid})
            _signal(process, signal.SIGKILL)
        await process.wait()
        _kill_rest(process.pid, family)
        seconds = round(time.monotonic() - begun, 3)
        logger.info("child_stopped", extra={"child": self.spec.name, "pid": process.pid, "seconds": seconds})

    async def _spawn(self) -> Process:
        spec = self.spec
        account = "-"
        if spec.user is not None:
            entry = pwd.getpwnam(spec.user)
            account = f"{entry.pw_uid}:{entry.pw_gid}"
        helper = [sys.executable, "-I", "-S", str(EXEC_CHILD), str(os.getpid()), str(int(spec.death_signal)), account]
        with self.log.open() as output:
            self._process = await asyncio.create_subprocess_exec(
                *helper,
                *spec.argv,
                env=dict(spec.environment),
                cwd=spec.cwd,
                stdin=DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._started_at = time.monotonic()
        logger.info("child_started", extra={"child": spec.name, "pid": self._process.pid})
        return self._process

    async def _until_ready(self) -> None:
        started_at = time.time()
        while True:
            if await self.spec.ready(started_at):
                return
            await asyncio.sleep(READY_POLL_SECONDS)

    async def _watch(self, process: Process) -> None:
        delay: float | None = None
        while True:
            code = await process.wait()
            _kill_rest(process.pid, [])
            logger.error("child_ended", extra={"child": self.spec.name, "exit_code": code})
            what = how_it_ended(code)
            while True:
                delay = self.backoff.next(delay, time.monotonic() - self._started_at)
                self.say(f"{self.spec.name} {what}; starting it again in {delay:g} s (log: {self.log.path})")
                await asyncio.sleep(delay)
                try:
                    process = await self._spawn()
                    break
                except OSError as exc:
                    what = f"can't be started ({exc.strerror})"
            if await self._ready_or_ended(process) and process.returncode is None:
                self.say(f"{self.spec.name} is back")

    async def _ready_or_ended(self, process: Process) -> bool:
        """Wait for the first of both; whether it is ready. Neither within `ready_seconds`: False, and it runs on."""
        ready = asyncio.ensure_future(self._until_ready())
        ended = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait({ready, ended}, timeout=self.spec.ready_seconds, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                await ready
            return ready.done()
        finally:
            ready.cancel()
            ended.cancel()


def how_it_ended(code: int | None) -> str:
    """A return code in words."""
    if code is None:
        return "is running"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _kill_rest(pid: int, family: list[psutil.Process]) -> None:
    """Kill what an ended child has left: its process group, and what was below it when we last looked."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for one in family:
        with contextlib.suppress(psutil.Error):
            one.kill()
