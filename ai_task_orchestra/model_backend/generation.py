"""`generate` and `chat`: from a request to the records of its answer."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from ai_task_orchestra.model_backend.durations import keep_alive_seconds
from ai_task_orchestra.model_backend.engine import EngineClient, Finish
from ai_task_orchestra.model_backend.installed import InstalledModel
from ai_task_orchestra.model_backend.prompts import PromptRules, chat_prompt, fit
from ai_task_orchestra.model_backend.protocol import (
    ChatRequest,
    GenerateRequest,
    Options,
    ProtocolError,
    TextRequest,
    now,
)
from ai_task_orchestra.model_backend.runner import RunnerProcess
from ai_task_orchestra.model_backend.scheduler import Lease, Scheduler

Record = dict[str, Any]
Shape = Callable[[str], Record]

MOST_CONTEXTS = 10
"""No answer is longer than this many contexts, however many tokens were asked for."""


def generate(
    scheduler: Scheduler[RunnerProcess], model: InstalledModel, request: GenerateRequest
) -> AsyncGenerator[Record, None]:
    """The records of a `generate` answer.

    Raises:
        ProtocolError: 400, it asks for something that this model or this backend can't do.
    """
    _refuse(request, model, images=bool(request.images), insert=bool(request.suffix))
    if request.template or request.context:
        raise ProtocolError(400, "template and context are not supported by the embedded backend")
    if request.raw and request.system:
        raise ProtocolError(400, "raw mode does not support template, system, or context")
    turns = [{"role": "system", "content": request.system}] if request.system else []
    turns.append({"role": "user", "content": request.prompt})
    if not request.prompt:
        return _load_only(scheduler, model, request, generated)
    return _answer(scheduler, model, request, turns, request.prompt if request.raw else None, generated)


def chat(
    scheduler: Scheduler[RunnerProcess], model: InstalledModel, request: ChatRequest
) -> AsyncGenerator[Record, None]:
    """The records of a `chat` answer.

    Raises:
        ProtocolError: 400, it asks for something that this model or this backend can't do.
    """
    messages = request.messages or []
    _refuse(request, model, images=any(message.images for message in messages), tools=bool(request.tools))
    if any(message.tool_calls for message in messages):
        raise ProtocolError(400, f'"{request.model_name}" does not support tools')
    turns = [{"role": message.role.lower(), "content": message.content} for message in messages]
    if not turns:
        return _load_only(scheduler, model, request, chatted)
    return _answer(scheduler, model, request, turns, None, chatted)


def generated(text: str) -> Record:
    """How `generate` carries text."""
    return {"response": text}


def chatted(text: str) -> Record:
    """How `chat` carries text."""
    return {"message": {"role": "assistant", "content": text}}


def _refuse(
    request: TextRequest, model: InstalledModel, *, images: bool = False, tools: bool = False, insert: bool = False
) -> None:
    wanted = {"thinking": bool(request.think), "vision": images, "tools": tools, "insert": insert}
    for capability, asked in wanted.items():
        if asked:
            raise ProtocolError(400, f'"{request.model_name}" does not support {capability}')
    if request.logprobs or request.top_logprobs:
        raise ProtocolError(400, "logprobs are not supported by the embedded backend")


async def _load_only(
    scheduler: Scheduler[RunnerProcess], model: InstalledModel, request: TextRequest, shape: Shape
) -> AsyncGenerator[Record, None]:
    """No prompt: only load the model, or let it go when it is not to be kept."""
    keep = keep_alive_seconds(request.keep_alive)
    if keep == 0:
        scheduler.unload(model)
        reason = "unload"
    else:
        num_ctx = request.options.num_ctx if request.options else None
        async with scheduler.lease(model, num_ctx=num_ctx, keep_alive_seconds=keep):
            reason = "load"
    yield {"model": request.model_name, "created_at": now(), **shape(""), "done": True, "done_reason": reason}


async def _answer(
    scheduler: Scheduler[RunnerProcess],
    model: InstalledModel,
    request: TextRequest,
    turns: list[dict[str, str]],
    raw: str | None,
    shape: Shape,
) -> AsyncGenerator[Record, None]:
    """1. have the model; 2. wait for a slot; 3. make the prompt; 4. pass on the text; 5. say how it went."""
    started = time.perf_counter_ns()
    options = request.options or Options()
    keep = keep_alive_seconds(request.keep_alive)
    schema = _schema(request)
    async with scheduler.lease(model, num_ctx=options.num_ctx, keep_alive_seconds=keep) as lease, lease.slot:
        engine = lease.runner.client
        rules = _rules(model, request, options, lease, schema)
        if schema is not None:
            await engine.render(
                [{"role": "user", "content": ""}], schema
            )  # the engine would drop a bad schema silently
        prompt = await (fit(engine, raw, rules) if raw is not None else chat_prompt(engine, turns, rules))
        payload = await _payload(engine, prompt, options, rules)
        text: list[str] = []
        async with aclosing(engine.complete(payload)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Finish):
                    _check_format(schema, "".join(text), piece)
                    total = time.perf_counter_ns() - started
                    yield {**_head(request), **shape(""), **_tail(piece, total, lease.load_nanoseconds)}
                else:
                    text.append(piece)
                    yield {**_head(request), **shape(piece), "done": False}


def _head(request: TextRequest) -> Record:
    return {"model": request.model_name, "created_at": now()}


def _tail(finish: Finish, total: int, load: int) -> Record:
    """The last record's counts; as in Ollama, one that is zero is left out."""
    counts = {
        "total_duration": total,
        "load_duration": load,
        "prompt_eval_count": finish.prompt_tokens,
        "prompt_eval_duration": finish.prompt_nanoseconds,
        "eval_count": finish.output_tokens,
        "eval_duration": finish.output_nanoseconds,
    }
    return {"done": True, "done_reason": finish.reason, **{name: count for name, count in counts.items() if count}}


def _schema(request: TextRequest) -> dict[str, Any] | None:
    """What the answer must look like. Lenient: keywords that the engine does not know are not enforced."""
    if not request.format:
        return {} if request.format == {} else None
    return {"type": "object"} if request.format == "json" else dict(request.format)


def _rules(
    model: InstalledModel,
    request: TextRequest,
    options: Options,
    lease: Lease[RunnerProcess],
    schema: dict[str, Any] | None,
) -> PromptRules:
    return PromptRules(
        context_length=lease.context_length,
        num_keep=options.num_keep,
        templated=bool(model.chat_template),
        adds_bos=model.adds_bos,
        truncate=request.truncate is not False,
        shift=request.shift is not False,
        schema=schema,
    )


async def _payload(
    engine: EngineClient, prompt: str | list[int], options: Options, rules: PromptRules
) -> dict[str, Any]:
    limit = MOST_CONTEXTS * rules.context_length
    if not rules.shift:  # the engine always may shift; without, the answer must end with the context
        used = len(prompt) if isinstance(prompt, list) else len(await engine.tokenize(prompt))
        limit = max(rules.context_length - used, 1)
    # "Until done" is one context at most: a small model that has not stopped by then repeats itself, for minutes.
    wanted = rules.context_length if options.num_predict < 0 else options.num_predict
    sampling = options.model_dump(exclude={"num_ctx", "num_predict", "num_keep"})
    limits = {"n_predict": min(wanted, limit), "n_keep": options.num_keep}
    payload = {**sampling, **limits, "prompt": prompt, "cache_prompt": True}
    if rules.schema is not None:
        payload["json_schema"] = {**rules.schema, "x-guidance": {"lenient": True}}
    return payload


def _check_format(schema: dict[str, Any] | None, text: str, finish: Finish) -> None:
    """The engine answers freely when it can't compile a schema; that must not look like an answer in the format."""
    if schema is None or finish.reason == "length":
        return
    try:
        json.loads(text)
    except ValueError as exc:
        raise ProtocolError(500, "the embedded engine could not enforce this format") from exc
