"""Running programs: bounded output, measured use, and nothing left behind.

Every program runs below a supervisor of its own (`_exec.py`), which ends with everything below it when we ask for that
or are gone ourselves.
"""

from __future__ import annotations

import asyncio
import logging
import marshal
import os
import subprocess
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ai_task_orchestra.errors import IsolationError, StepError, StepInputError, StepTimeoutError
from ai_task_orchestra.isolation.helper import argv_of
from flows.clients.adoption import Adoption
from flows.clients.confinement import Confinement, limit_error
from flows.text import decoded, last_line

logger = logging.getLogger(__name__)

GRACE_SECONDS: Final = 2.0
# What a supervisor may need beyond the grace: its own bound on killing, and some time to notice.
_SUPERVISOR_SECONDS: Final = 8.0
_DRAIN_SECONDS: Final = 1.0
_TAIL_BYTES: Final = 4096

UsageRecord = Callable[[int, float], None]


@dataclass(frozen=True)
class ProcessEnd:
    """How a program ended.

    `exit_code` is negative for a signal. `truncated`: one of the outputs was longer than allowed. `error_line` is the
    last line of stderr, even if that was cut. Peak resident size counts the whole tree (sampled, and never below what
    the largest single process reached); processor time that of all its processes.
    """

    exit_code: int
    stdout: str
    stderr: str
    truncated: bool
    error_line: str
    peak_rss_bytes: int
    cpu_seconds: float


async def run_process(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    max_output_bytes: int,
    confinement: Confinement,
    timeout_seconds: float | None = None,
    record: UsageRecord | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> ProcessEnd:
    """Run a program to its end, without a shell and with empty input.

    However this function ends (a cancellation included), no process of the program is alive afterwards: they get
    SIGTERM, after `grace_seconds` SIGKILL.

    Args:
        argv: the program, looked up in the PATH of `env`, and its arguments.
        cwd: where it runs.
        env: its whole environment.
        confinement: what stands around it.
        max_output_bytes: how much of stdout and of stderr is kept; the rest is read and dropped.
        timeout_seconds: when it is ended; None leaves that to the caller.
        record: told peak resident bytes and processor seconds, whatever the end.
        grace_seconds: between SIGTERM and SIGKILL.

    Raises:
        StepInputError: it can't be started; the message names the program.
        StepTimeoutError: its time ran out.
        LimitError: it reached a limit; the message says which.
        IsolationError: its confinement can't be made.
        StepError: somebody killed the supervisor.
    """
    if any("\0" in part for part in (*argv, *env, *env.values())):
        raise StepInputError("a command can't hold the NUL character")
    run = _Run(max_output_bytes, grace_seconds)
    job = {
        "argv": [os.fsencode(part) for part in argv],
        "env": {os.fsencode(name): os.fsencode(value) for name, value in env.items()},
        "cwd": os.fsencode(cwd),
        "grace_seconds": grace_seconds,
        "jail": confinement.as_job(),
    }
    try:
        await run.execute(marshal.dumps(job), timeout_seconds)
    finally:
        if record is not None:
            record(run.peak_rss_bytes, run.cpu_seconds)
    return run.result(argv[0], confinement)


class _Stream(asyncio.Protocol):
    """Reads a pipe to its end; keeps the beginning, and a little of the end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._head = bytearray()
        self._tail = b""
        self.dropped = False
        self.closed = asyncio.Event()

    def itself(self) -> _Stream:
        """The protocol factory that asyncio wants."""
        return self

    def data_received(self, data: bytes) -> None:
        room = self._limit - len(self._head)
        self._head += data[:room]
        self.dropped = self.dropped or len(data) > room
        self._tail = (self._tail + data[-_TAIL_BYTES:])[-_TAIL_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def text(self) -> tuple[str, bool]:
        text, cut = decoded(bytes(self._head), self._limit, complete=not self.dropped)
        return text, cut or self.dropped

    @property
    def last_line(self) -> str:
        return last_line(self._tail.decode("utf-8", "replace"))


class _Run:
    """One program below its supervisor, seen from our side."""

    def __init__(self, limit: int, grace_seconds: float) -> None:
        self.peak_rss_bytes = 0
        self.cpu_seconds = 0.0
        self._exit_code: int | None = None
        self._not_started: tuple[str, int, str] | None = None
        self._limit: str | None = None
        self._out, self._err, self._status = _Stream(limit), _Stream(limit), _Stream(65536)
        self._patience = grace_seconds + _SUPERVISOR_SECONDS
        self._adoption = Adoption()

    async def execute(self, job: bytes, timeout_seconds: float | None) -> None:
        """The life of a run:

        1. watch for what may escape, start the supervisor, connect its pipes
        2. hand it the job
        3. wait until it is gone: its status pipe closes
        4. whatever happened: have it end everything, and see to it that it is gone; close the pipes

        """
        async with AsyncExitStack() as stack:
            stack.enter_context(self._adoption.watch())  # 1
            control, supervisor = await self._start(stack)
            try:
                control.write(b"%d\n" % len(job) + job)  # 2
                limit = asyncio.timeout(timeout_seconds)
                async with limit:
                    await self._status.closed.wait()  # 3
            except TimeoutError as exc:
                if not limit.expired():
                    raise
                raise StepTimeoutError(f"it took longer than {timeout_seconds:g} s", retryable=True) from exc
            finally:
                await _to_the_end(self._stop(control, supervisor))  # 4

    async def _start(self, stack: AsyncExitStack) -> tuple[asyncio.WriteTransport, subprocess.Popen[bytes]]:
        """No await stands between the start and the first moment from which `execute` stops the supervisor."""
        loop = asyncio.get_running_loop()
        ours, theirs = [], []
        for _ in range(4):
            read, write = os.pipe()
            ours.append(read)
            theirs.append(write)
        ours[0], theirs[0] = theirs[0], ours[0]  # the first one is written by us
        closing: list[asyncio.BaseTransport] = []
        try:
            control, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(ours[0], "wb", 0))
            closing.append(control)
            for fd, stream in zip(ours[1:], (self._out, self._err, self._status), strict=True):
                reading, _ = await loop.connect_read_pipe(stream.itself, os.fdopen(fd, "rb", 0))
                closing.append(reading)
            supervisor = self._spawn(theirs)
        except BaseException:
            for transport in closing:
                transport.close()
            for fd in ours[len(closing) + 1 :]:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        for transport in closing:
            stack.callback(transport.close)
        return control, supervisor

    def _spawn(self, fds: list[int]) -> subprocess.Popen[bytes]:
        stdin, stdout, stderr, status = fds
        env = {name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"}
        supervisor = subprocess.Popen(
            argv_of("flows.clients._exec", os.getpid(), status),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(status,),
            env=env,
            cwd="/",
        )
        self._adoption.started(supervisor.pid)
        return supervisor

    async def _stop(self, control: asyncio.WriteTransport, supervisor: subprocess.Popen[bytes]) -> None:
        """Closing its input makes the supervisor end everything; if it hangs, it is killed and we do its work."""
        if not control.is_closing():
            control.abort()
        if not await _within(self._patience, self._status.closed):
            supervisor.kill()
        while supervisor.poll() is None:  # noqa: ASYNC110 - its pipe is closed or it was killed: a matter of a moment
            await asyncio.sleep(0.002)
        self._read_status(self._status.text()[0])
        if self._exit_code is None and (strays := self._adoption.sweep()):
            logger.warning("processes_left_by_their_supervisor", extra={"processes": strays})
        for stream in (self._out, self._err):
            await _within(_DRAIN_SECONDS, stream.closed)

    def _read_status(self, text: str) -> None:
        for line in text.splitlines():
            match line.split():
                case ["ended", code, cpu, peak]:
                    self._exit_code, self.cpu_seconds, self.peak_rss_bytes = int(code), float(cpu), int(peak)
                case [("start" | "jail") as what, number, *words]:
                    self._not_started = what, int(number), " ".join(words)
                case ["limit", name]:
                    self._limit = name

    def result(self, program: str, confinement: Confinement) -> ProcessEnd:
        """What there is to tell once it is over."""
        match self._not_started:
            case ("jail", _, words):
                raise IsolationError(f"the program can't be kept apart ({words})")
            case (_, number, _):
                raise StepInputError(f"{program} can't be started: {os.strerror(number)}")
        if self._limit is not None:
            raise limit_error(self._limit, confinement)
        if self._exit_code is None:
            raise StepError("the process that watches over the program was killed")
        stdout, out_cut = self._out.text()
        stderr, err_cut = self._err.text()
        return ProcessEnd(
            exit_code=self._exit_code,
            stdout=stdout,
            stderr=stderr,
            truncated=out_cut or err_cut,
            error_line=self._err.last_line,
            peak_rss_bytes=self.peak_rss_bytes,
            cpu_seconds=self.cpu_seconds,
        )


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Finish `work` even if we are cancelled meanwhile; the cancellation goes on afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled
    task.result()
