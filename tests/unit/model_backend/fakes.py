"""Scripted stand-ins for the parts that need a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ai_task_orchestra.model_backend.engine import Embeddings, Finish
from ai_task_orchestra.model_backend.installed import InstalledModel

TEMPLATE = "{{ messages }}"


def installed(name: str = "one:latest", *, trained: int = 8192, template: str = TEMPLATE) -> InstalledModel:
    header: dict[str, Any] = {"general.architecture": "llama", "llama.context_length": trained}
    if template:
        header["tokenizer.chat_template"] = template
    return InstalledModel(name, Path(f"/models/{name}.gguf"), 1000, datetime(2026, 1, 1, tzinfo=UTC), "d" * 64, header)


@dataclass(eq=False)
class FakeRunner:
    """A runner that lives until it is killed, or crashes when told to."""

    model: InstalledModel
    context_length: int
    client: Any = None
    memory_bytes: int = 5000
    killed: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def alive(self) -> bool:
        return not self.gone.is_set()

    def kill(self) -> None:
        self.killed = True
        self.gone.set()

    def crash(self) -> None:
        self.gone.set()

    async def wait(self) -> None:
        await self.gone.wait()


class FakeLauncher:
    """Remembers what was loaded. `gate` holds loads back; `fail` makes the next one fail."""

    def __init__(self, client: Any = None) -> None:
        self.client = client
        self.started: list[FakeRunner] = []
        self.begun = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail: Exception | None = None
        self.most_alive = 0

    async def launch(self, model: InstalledModel, context_length: int) -> FakeRunner:
        self.begun += 1
        await self.gate.wait()
        await asyncio.sleep(0)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        runner = FakeRunner(model, context_length, self.client)
        self.started.append(runner)
        self.most_alive = max(self.most_alive, len(self.alive))
        return runner

    @property
    def alive(self) -> list[FakeRunner]:
        return [runner for runner in self.started if runner.alive]

    @property
    def loads(self) -> list[str]:
        return [runner.model.name for runner in self.started]


class FakeEngine:
    """An engine whose tokens are bytes and whose template writes `role:content;` per message."""

    def __init__(self, says: Sequence[str | Finish | Exception] = ("Hel", "lo")) -> None:
        self.says = says
        self.payloads: list[Mapping[str, Any]] = []
        self.rendered: list[list[str]] = []
        self.closed = 0

    async def render(self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any] | None = None) -> str:
        self.rendered.append([turn["content"] for turn in messages])
        return "".join(f"{turn['role']}:{turn['content']};" for turn in messages)

    async def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode()

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return Embeddings([[0.6, 0.0, 0.8] for _ in texts], sum(map(len, texts)))

    async def complete(self, payload: Mapping[str, Any]) -> AsyncGenerator[str | Finish, None]:
        self.payloads.append(payload)
        try:
            for piece in self.says:
                await asyncio.sleep(0)
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if isinstance(piece, Finish):
                    return
            yield Finish("stop", 3, 2_000_000, 2, 1_000_000)
        finally:
            self.closed += 1
