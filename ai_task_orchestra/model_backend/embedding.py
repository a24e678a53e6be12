"""`embed` and the older `embeddings`."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator
from typing import Any

from ai_task_orchestra.model_backend.durations import keep_alive_seconds
from ai_task_orchestra.model_backend.engine import EngineClient
from ai_task_orchestra.model_backend.installed import InstalledModel
from ai_task_orchestra.model_backend.protocol import EmbeddingsRequest, EmbedRequest, ProtocolError
from ai_task_orchestra.model_backend.runner import BATCH_TOKENS, RunnerProcess
from ai_task_orchestra.model_backend.scheduler import Scheduler


async def embed(
    scheduler: Scheduler[RunnerProcess], model: InstalledModel, request: EmbedRequest
) -> AsyncGenerator[dict[str, Any], None]:
    """One record: a unit vector per text. A text longer than a batch is cut, or refused with `"truncate": false`.

    Raises:
        ProtocolError: 400, a text is too long.
    """
    started = time.perf_counter_ns()
    texts = [request.input] if isinstance(request.input, str) else request.input or []
    if request.input == "":
        texts = []
    num_ctx = request.options.num_ctx if request.options else None
    keep = keep_alive_seconds(request.keep_alive)
    async with scheduler.lease(model, num_ctx=num_ctx, keep_alive_seconds=keep) as lease:
        if not texts:
            yield {"model": request.model_name, "embeddings": []}
            return
        async with lease.slot:
            engine, limit = lease.runner.client, min(BATCH_TOKENS, lease.context_length)
            fitted = [await _fit(engine, text, limit, request.truncate is not False) for text in texts]
            found = await engine.embed(fitted)
        vectors = [_shorten(vector, request.dimensions) for vector in found.vectors]
        yield {
            "model": request.model_name,
            "embeddings": vectors,
            "total_duration": time.perf_counter_ns() - started,
            "load_duration": lease.load_nanoseconds,
            "prompt_eval_count": found.prompt_tokens,
        }


async def embeddings(
    scheduler: Scheduler[RunnerProcess], model: InstalledModel, request: EmbeddingsRequest
) -> AsyncGenerator[dict[str, Any], None]:
    """One record: the vector of one text."""
    modern = EmbedRequest(
        model=request.model_name, input=request.prompt, options=request.options, keep_alive=request.keep_alive
    )
    async for record in embed(scheduler, model, modern):
        yield {"embedding": next(iter(record["embeddings"]), [])}


async def _fit(engine: EngineClient, text: str, limit: int, truncate: bool) -> str:
    if len(text.encode()) < limit - 2:  # a token is at least one byte; two special ones may be added
        return text
    tokens = await engine.tokenize(text)
    if len(tokens) <= limit:
        return text
    if not truncate:
        raise ProtocolError(400, "the input length exceeds the context length")
    return await engine.detokenize(tokens[: limit - 2])


def _shorten(vector: list[float], dimensions: int | None) -> list[float]:
    """The first `dimensions` numbers, made a unit vector again."""
    if not dimensions or not 0 < dimensions < len(vector):
        return vector
    part = vector[:dimensions]
    length = max(math.sqrt(sum(value * value for value in part)), 1e-12)
    return [value / length for value in part]
