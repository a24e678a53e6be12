"""The model server, spoken to in Ollama's protocol: one robust client for all steps.

Over the official client, which by itself waits for ever, takes a broken-off stream for a whole answer, and raises a
dozen kinds of exceptions. Here: every wait has a limit, an answer is whole or an error, errors are of the ModelError
family (see `ollama_errors`), and leaving a call by any way closes its connection, which ends the generation.

The server's address comes from the settings alone, never from a task.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
import ollama

from ai_task_orchestra.errors import ModelError, ModelOutputError
from ai_task_orchestra.settings import Settings
from flows.clients.ollama_answer import (
    Collected,
    LoadedModel,
    ModelAnswer,
    Part,
    chatted,
    generated,
    model_call,
    seconds,
)
from flows.clients.ollama_errors import ModelUnavailableError, translated
from flows.clients.ollama_transport import BoundedTransport
from flows.usage import ModelCall

# A full server or one that restarts is asked again so often, after 0.25 s, 0.5 s, ... each at random half as long.
MAX_TRIES: Final = 5
FIRST_PAUSE_SECONDS: Final = 0.25
MAX_PAUSE_SECONDS: Final = 30.0
# How long the look at the loaded models may take; without its answer the memory stays unknown.
LOOK_TIMEOUT_SECONDS: Final = 2.0
# The JSON around each token is many times the token, and the last line may carry the context's token numbers.
_LINE_FACTOR: Final = 16
_ANSWER_FACTOR: Final = 256

Line = TypeVar("Line", ollama.GenerateResponse, ollama.ChatResponse)
Answered = TypeVar("Answered")


class OllamaClient:
    """Speaks to the model server of the settings for one step.

    `deadline_seconds` (from now) is when the step's time is over: no retry is begun that would wait beyond it. An
    asynchronous context manager.
    """

    def __init__(
        self, settings: Settings, *, deadline_seconds: float, log: logging.Logger | logging.LoggerAdapter[Any]
    ):
        self._settings = settings
        self._log = log
        self._deadline = asyncio.get_running_loop().time() + deadline_seconds
        self._transport = BoundedTransport(
            encrypted=settings.ollama_url.startswith("https:"),
            max_line_bytes=_LINE_FACTOR * settings.max_output_bytes,
            max_answer_bytes=_ANSWER_FACTOR * settings.max_output_bytes,
        )
        # No redirects and no proxies of the environment: prompts go to the configured server and nowhere else.
        # Reading has no time-out here: the waits for the first token and between tokens differ (see `_lines`).
        connect, idle = settings.connect_timeout_seconds, settings.token_idle_timeout_seconds
        self._client = ollama.AsyncClient(
            host=settings.ollama_url,
            timeout=httpx.Timeout(connect=connect, write=idle, pool=connect, read=None),
            headers={"accept-encoding": "identity"},
            follow_redirects=False,
            trust_env=False,
            transport=self._transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def generate(self, *, model: str, prompt: str, **fields: Any) -> ModelAnswer:
        """Answer a prompt. `fields`: system, format, options, keep_alive, images (bytes).

        Raises:
            ModelError: see the module.
        """

        async def ask() -> AsyncIterator[ollama.GenerateResponse]:
            return await self._client.generate(model=model, prompt=prompt, stream=True, **fields)

        return await self._with_retries(lambda: self._collect(model, ask, generated))

    async def chat(
        self, *, model: str, messages: Sequence[Mapping[str, Any] | ollama.Message], **fields: Any
    ) -> ModelAnswer:
        """Go on with a conversation. `fields`: format, options, keep_alive, tools.

        Raises:
            ModelError: see the module.
        """

        async def ask() -> AsyncIterator[ollama.ChatResponse]:
            return await self._client.chat(model=model, messages=messages, stream=True, **fields)

        return await self._with_retries(lambda: self._collect(model, ask, chatted))

    async def embed(
        self, *, model: str, texts: str | Sequence[str], **fields: Any
    ) -> tuple[list[list[float]], ModelCall]:
        """One vector per text. `fields`: options, keep_alive.

        Raises:
            ModelError: see the module.
        """
        wanted = 1 if isinstance(texts, str) else len(texts)

        async def ask() -> ollama.EmbedResponse:
            limit = self._settings.first_token_timeout_seconds
            with translated(model, self._transport), _limited(limit, "no embeddings"):
                async with asyncio.timeout(limit):
                    return await self._client.embed(model=model, input=texts, **fields)

        answer = await self._with_retries(ask)
        vectors = [list(vector) for vector in answer.embeddings]
        if len(vectors) != wanted or not all(vectors):
            raise ModelOutputError(f"{wanted} embeddings were asked for, {len(vectors)} came", retryable=True)
        loaded = await self.loaded(model) or LoadedModel()
        load = seconds(answer.load_duration)
        call = ModelCall(
            model=model,
            evaluation_seconds=max(0.0, seconds(answer.total_duration) - load),
            load_seconds=load,
            prompt_tokens=answer.prompt_eval_count or 0,
            memory_bytes=loaded.memory_bytes,
            gpu_memory_bytes=loaded.gpu_memory_bytes,
        )
        return vectors, call

    async def context_length(self, model: str) -> int | None:
        """How many tokens the model can have before it at most; None where the server does not say.

        Raises:
            ModelError: see the module.
        """

        async def ask() -> ollama.ShowResponse:
            limit = self._settings.first_token_timeout_seconds
            with translated(model, self._transport), _limited(limit, "no description of the model"):
                async with asyncio.timeout(limit):
                    return await self._client.show(model)

        described = await self._with_retries(ask)
        for name, value in (described.modelinfo or {}).items():
            if name.endswith(".context_length") and isinstance(value, int):
                return value
        return None

    async def _collect(
        self,
        model: str,
        ask: Callable[[], Awaitable[AsyncIterator[Line]]],
        parts_of: Callable[[Line], Part],
    ) -> ModelAnswer:
        """Read a stream to its `done` line; nothing else is an answer."""
        collected = Collected(self._settings.max_output_bytes)
        loaded: LoadedModel | None = None
        async with aclosing(self._lines(model, ask)) as lines:
            async for line in lines:
                if collected.is_empty:  # the model is loaded now; with keep_alive 0 it is not after the answer
                    loaded = await self.loaded(model)
                collected.add(parts_of(line))
                if line.done or collected.is_full:
                    return collected.answer(model_call(model, line, loaded or LoadedModel()), line.done_reason)
        raise ModelOutputError("the model server's answer ended without its last line", retryable=True)

    async def _lines(self, model: str, ask: Callable[[], Awaitable[AsyncIterator[Line]]]) -> AsyncGenerator[Line, None]:
        """The lines of one answer, each waited for no longer than the settings say."""
        limit, what = self._settings.first_token_timeout_seconds, "no first token"
        with translated(model, self._transport):
            lines = aiter(await ask())
        try:
            while True:
                with translated(model, self._transport), _limited(limit, what):
                    try:
                        async with asyncio.timeout(limit):
                            line = await anext(lines)
                    except StopAsyncIteration:
                        return
                yield line
                limit, what = self._settings.token_idle_timeout_seconds, "no further token"
        finally:
            # Closing the official client's generator closes the connection: the server stops computing.
            if isinstance(lines, AsyncGenerator):
                await lines.aclose()

    async def _with_retries(self, attempt: Callable[[], Awaitable[Answered]]) -> Answered:
        """Ask again while the server is full or not there: a few times, and only before the step's deadline."""
        tries = 0
        while True:
            self._transport.status = None
            try:
                return await attempt()
            except ModelUnavailableError as exc:
                tries += 1
                pause = _pause(tries, exc.retry_after_seconds)
                left = self._deadline - asyncio.get_running_loop().time()
                if tries >= MAX_TRIES or pause > min(left, MAX_PAUSE_SECONDS):
                    raise
                self._log.info("model_server_retry", extra={"tries": tries, "pause_seconds": round(pause, 3)})
                await asyncio.sleep(pause)

    async def loaded(self, model: str) -> LoadedModel | None:
        """What the server says of the model if it is loaded. Unknown is no reason to fail a step."""
        # A client of its own: the transport remembers the status of the answer that is being read meanwhile.
        async with OllamaClient(self._settings, deadline_seconds=0, log=self._log) as other:
            try:
                with translated(model, other._transport), _limited(LOOK_TIMEOUT_SECONDS, "no list of loaded models"):
                    async with asyncio.timeout(LOOK_TIMEOUT_SECONDS):
                        listed = await other._client.ps()
            except ModelError as exc:
                self._log.warning("model_memory_unknown", extra={"model": model, "reason": exc.message})
                return None
        for entry in listed.models:
            if _full_name(entry.model or entry.name or "") == _full_name(model):
                return LoadedModel(_size(entry.size), _size(entry.size_vram), entry.context_length)
        return None


def _pause(tries: int, asked_seconds: float | None) -> float:
    """Seconds before the next try: what the server asked for, else twice as long each time, half of it by chance."""
    if asked_seconds is not None:
        return asked_seconds + random.uniform(0, FIRST_PAUSE_SECONDS)  # noqa: S311 (spreads load, guards nothing)
    longest = FIRST_PAUSE_SECONDS * 2 ** (tries - 1)
    return random.uniform(longest / 2, longest)  # noqa: S311


@contextmanager
def _limited(seconds: float, what: str) -> Iterator[None]:
    """Says in our words that a time-out around one wait struck."""
    try:
        yield
    except TimeoutError as exc:
        raise ModelError(f"{what} from the model server within {seconds:g} s", retryable=True) from exc


def _size(value: int | None) -> int | None:
    return None if value is None else int(value)


def _full_name(model: str) -> str:
    return model if ":" in model.rsplit("/", 1)[-1] else f"{model}:latest"
