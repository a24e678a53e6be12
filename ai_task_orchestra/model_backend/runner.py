"""The process of one loaded model, seen from its parent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import httpx
import psutil

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.model_backend.engine import EngineClient
from ai_task_orchestra.model_backend.installed import InstalledModel
from ai_task_orchestra.model_backend.protocol import ProtocolError
from ai_task_orchestra.model_backend.runner_child import RunnerConfig

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "ai_task_orchestra.model_backend.runner_child")
LOAD_TIMEOUT_SECONDS = 300.0
BATCH_TOKENS = 512
"""Tokens evaluated at once: also the longest text that can be embedded."""

# The engine needs no secret of ours; OMP_, GGML_ and LLAMA_ are its own settings.
_PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")
_PREFIXES = ("LC_", "LD_", "DYLD_", "OMP_", "GGML_", "LLAMA_")


@dataclass(frozen=True)
class RunnerProcess:
    """A running engine. Made by `RunnerLauncher`; it is gone when `wait()` returns."""

    process: asyncio.subprocess.Process
    client: EngineClient
    drain: asyncio.Task[None]

    @property
    def alive(self) -> bool:
        """Whether the process still runs, as far as is known."""
        return self.process.returncode is None

    @property
    def memory_bytes(self) -> int:
        """Resident size of the process; 0 when it is gone."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def kill(self) -> None:
        """End the process; the engine has nothing to save."""
        _kill(self.process)

    async def wait(self) -> None:
        """Return when the process is gone."""
        await self.process.wait()
        await asyncio.gather(self.drain, return_exceptions=True)


@dataclass(frozen=True)
class RunnerLauncher:
    """Starts runners that share an HTTP client, a number of threads and a number of slots."""

    http: httpx.AsyncClient
    threads: int
    parallel: int
    command: Sequence[str] = COMMAND

    async def launch(self, model: InstalledModel, context_length: int) -> RunnerProcess:
        """Load `model`; returns when it can answer. A cancelled launch leaves no process.

        Raises:
            ProtocolError: 500, the engine could not load it, or took longer than `LOAD_TIMEOUT_SECONDS`.
        """
        key = secrets.token_hex(16)
        config: RunnerConfig = {
            "parent": os.getpid(),
            "path": str(model.path),
            "name": model.name,
            "api_key": key,
            "context_length": context_length,
            "parallel": self.parallel,
            "threads": self.threads,
            "batch": BATCH_TOKENS,
        }
        process, drain, answer = await _start(self.command, config)
        if "address" not in answer:
            raise ProtocolError(500, answer["error"])
        log.info("runner_started", extra={"model": model.name, "pid": process.pid, "context_length": context_length})
        return RunnerProcess(process, EngineClient(self.http, answer["address"], key), drain)


async def probe_engine(command: Sequence[str] = COMMAND) -> str:
    """Whether the engine can be used on this machine; a description of what it uses of the CPU.

    Raises:
        ConfigurationError: it can't; says the mend.
    """
    config: RunnerConfig = {
        "parent": os.getpid(),
        "path": None,
        "name": "",
        "api_key": "",
        "context_length": 0,
        "parallel": 1,
        "threads": 1,
        "batch": 1,
    }
    process, drain, answer = await _start(command, config)
    _kill(process)
    await process.wait()
    await asyncio.gather(drain, return_exceptions=True)
    if "error" in answer:
        raise ConfigurationError(f"the embedded model backend can't run: {answer['error']}")
    return answer["system"]


async def _start(
    command: Sequence[str], config: RunnerConfig
) -> tuple[asyncio.subprocess.Process, asyncio.Task[None], dict[str, str]]:
    """Start a runner and read its one answer; `{"error": ...}` means that its process is gone."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(),
        start_new_session=True,  # Ctrl-C is for us; we tell the runners
    )
    last_words: deque[str] = deque(maxlen=10)
    drain = asyncio.create_task(_drain(process, last_words))
    try:
        async with asyncio.timeout(LOAD_TIMEOUT_SECONDS):
            answer = await _ask(process, config)
    except TimeoutError:
        answer = {"error": f"timed out loading the model after {LOAD_TIMEOUT_SECONDS:g} s"}
    except BaseException:
        await _discard(process, drain)
        raise
    if "error" in answer:
        await _discard(process, drain)
        log.warning("runner_failed", extra={"model": config["name"], "reason": answer["error"]})
        log.debug("runner_last_words", extra={"lines": list(last_words)})
    return process, drain, answer


async def _ask(process: asyncio.subprocess.Process, config: RunnerConfig) -> dict[str, str]:
    stdin, stdout = cast(asyncio.StreamWriter, process.stdin), cast(asyncio.StreamReader, process.stdout)
    with contextlib.suppress(ConnectionError):  # it died at once: its exit status says more
        stdin.write(json.dumps(config).encode() + b"\n")
        await stdin.drain()
    line = await stdout.readline()
    if line:
        answer: dict[str, str] = json.loads(line)
        return answer
    return {"error": f"the model runner stopped while loading ({describe_exit(await process.wait())})"}


async def _drain(process: asyncio.subprocess.Process, last_words: deque[str]) -> None:
    """Keep the pipe empty, or the engine would stop at a full one."""
    stderr = cast(asyncio.StreamReader, process.stderr)
    while block := await stderr.read(65536):
        last_words.extend(block.decode("utf-8", "replace").splitlines())


async def _discard(process: asyncio.subprocess.Process, drain: asyncio.Task[None]) -> None:
    _kill(process)
    await process.wait()
    await asyncio.gather(drain, return_exceptions=True)


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def describe_exit(code: int) -> str:
    """An exit status in words, with the mend where one is known."""
    if code == -signal.SIGILL:
        return "illegal instruction: the engine needs a CPU with AVX2; set OLLAMA_HOST to an Ollama server"
    if code == -signal.SIGKILL:
        return "killed: probably out of memory"
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _environment() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name in _PASSED_ON or name.startswith(_PREFIXES)}
