"""One answer of the scripted server: generate, chat or embed, and every fault on the way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any, Final

from ai_task_orchestra.testing import ollama_replies as replies
from ai_task_orchestra.testing.http_exchange import Exchange
from ai_task_orchestra.testing.model_memory import ModelMemory, ModelTooLargeError, ServerBusyError, parse_keep_alive
from ai_task_orchestra.testing.scripted_models import Script, ScriptedModel

NDJSON: Final = "application/x-ndjson"
_PAGE: Final = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
_BUSY: Final = "server busy, please try again.  maximum pending requests exceeded"


class RequestRefusedError(Exception):
    """The request is answered with an error status and Ollama's own words."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(message)


class Generation:
    """Answers one request; `failed` tells afterwards whether a fault was played."""

    def __init__(
        self, memory: ModelMemory, exchange: Exchange, endpoint: str, body: dict[str, Any], script: Script
    ) -> None:
        self._memory = memory
        self._exchange = exchange
        self._endpoint = endpoint
        self._body = body
        self._script = script
        self.failed = False

    async def run(self, model: ScriptedModel | None) -> None:
        """Answer.

        Raises:
            RequestRefusedError: unknown model, unusable field, full queue, too little memory.
        """
        if await self._play_whole_answer_fault():
            return
        model = self._checked(model)
        options = self._body.get("options") or {}
        try:
            keep_alive = parse_keep_alive(self._body.get("keep_alive"))
        except ValueError as exc:
            raise RequestRefusedError(400, str(exc)) from exc
        if self._is_empty() and keep_alive == 0.0:
            await self._memory.unload(model)
            await self._exchange.reply_json(200, self._line(model, "", done=True) | {"done_reason": "unload"})
            return
        loading = self._script.load_seconds
        try:
            async with self._memory.use(
                model, num_ctx=options.get("num_ctx"), keep_alive=keep_alive, load_seconds=loading
            ) as load_ns:
                await self._counted(model, load_ns)
        except ServerBusyError as exc:
            raise RequestRefusedError(503, _BUSY) from exc
        except ModelTooLargeError as exc:
            raise RequestRefusedError(
                500, f"model requires more system memory ({model.size_bytes / 2**30:.1f} GiB) than is available"
            ) from exc

    def _checked(self, model: ScriptedModel | None) -> ScriptedModel:
        name = self._body.get("model")
        if not name:
            raise RequestRefusedError(400, "model is required")
        if model is None:
            text = f"model '{name}' not found"
            if self._endpoint == "embed":
                text = f'model "{name}" not found, try pulling it first'
            raise RequestRefusedError(404, text)
        for wanted, capability in (("tools", "tools"), ("think", "thinking")):
            if self._body.get(wanted) and capability not in model.capabilities:
                raise RequestRefusedError(400, f'"{name}" does not support {capability}')
        return model

    def _is_empty(self) -> bool:
        """A request without prompt or messages loads or unloads the model, no more."""
        return not self._body.get({"generate": "prompt", "chat": "messages"}.get(self._endpoint, "input"))

    async def _play_whole_answer_fault(self) -> bool:
        """Faults that need no model. Returns whether one was played."""
        script, exchange = self._script, self._exchange
        early = script.after_tokens == 0
        match script.fault:
            case "status":
                named = {"Retry-After": script.retry_after, "Location": script.location}
                headers = {name: value for name, value in named.items() if value}
                data = script.body if script.body is not None else json.dumps({"error": script.error})
                await exchange.reply(script.status, _bytes(data), "application/json; charset=utf-8", headers)
            case "html":
                data = script.body if script.body is not None else _PAGE
                await exchange.reply(script.status, _bytes(data), "text/html")
            case "body":
                await exchange.start(200, NDJSON)
                await exchange.send(_bytes(script.body or b""))
                await exchange.finish()
            case "hang" if early:
                self.failed = True
                await asyncio.Event().wait()
            case "close" if early:
                exchange.close()
            case "reset" if early:
                exchange.reset()
            case _:
                return False
        self.failed = True
        return True

    async def _counted(self, model: ScriptedModel, load_ns: int) -> None:
        statistics = self._memory.statistics
        if self._endpoint != "embed" and self._is_empty():
            await self._exchange.reply_json(200, self._line(model, "", done=True) | {"done_reason": "load"})
            return
        statistics.generations += 1
        statistics.running += 1
        statistics.running_peak = max(statistics.running_peak, statistics.running)
        try:
            if self._endpoint == "embed":
                await self._embed(model, load_ns)
            else:
                await self._generate(model, load_ns)
        finally:
            statistics.running -= 1
        statistics.completed += not self.failed

    async def _embed(self, model: ScriptedModel, load_ns: int) -> None:
        given = self._body.get("input", [])
        texts = [str(text) for text in given] if isinstance(given, list) else [str(given)]
        began = time.perf_counter_ns()
        count = await self._read_prompt(model)
        answer = {
            "model": self._body["model"],
            "embeddings": [replies.embedding(text, model.embedding_length) for text in texts],
            "total_duration": time.perf_counter_ns() - began + load_ns,
            "load_duration": load_ns,
            "prompt_eval_count": count,
        }
        if self._script.fault:  # one body, no lines: whatever the fault, it breaks off in the middle
            self.failed = True
            data = json.dumps(answer).encode()
            await self._exchange.start(200, "application/json")
            await self._exchange.send(data[: len(data) // 2])
            self._exchange.close()
            return
        await self._exchange.reply_json(200, answer)

    async def _generate(self, model: ScriptedModel, load_ns: int) -> None:
        script = self._script
        began = time.perf_counter_ns()
        prompt_count = await self._read_prompt(model)
        prompt_ns = time.perf_counter_ns() - began
        text = replies.answer_text(model, script.text, self._body.get("format"))
        pieces, reason = self._limited(replies.tokens(text))
        rate = script.tokens_per_second or model.tokens_per_second
        stream = self._body.get("stream", True) is not False
        if stream:
            await self._exchange.start(200, NDJSON)
            await self._extra_lines(model)
        for index, piece in enumerate(pieces):
            if await self._fault_at(index, model, piece):
                return
            await self._pace(began + prompt_ns, index + 1, rate)
            if stream:
                await self._send(self._line(model, piece))
        if await self._fault_at(len(pieces), model, "", last=True):
            return
        evaluation_ns = max(time.perf_counter_ns() - began - prompt_ns, 1)
        last = self._line(model, "" if stream else "".join(pieces), done=True) | {
            "done_reason": script.done_reason or reason,
            "total_duration": load_ns + prompt_ns + evaluation_ns,
            "load_duration": load_ns,
            "prompt_eval_count": prompt_count,
            "prompt_eval_duration": max(prompt_ns, 1),
            "eval_count": len(pieces),
            "eval_duration": evaluation_ns,
        }
        if stream:
            await self._send(last)
            await self._exchange.finish()
        else:
            await self._exchange.reply_json(200, last)

    async def _extra_lines(self, model: ScriptedModel) -> None:
        """Thinking and tool calls come before the text."""
        script = self._script
        if script.thinking:
            await self._send(self._line(model, "", thinking=script.thinking))
        if script.tool_calls and self._endpoint == "chat":
            line = self._line(model, "")
            line["message"]["tool_calls"] = list(script.tool_calls)
            await self._send(line)

    async def _fault_at(self, index: int, model: ScriptedModel, piece: str, *, last: bool = False) -> bool:
        """Play the script's fault if its time has come: after `after_tokens`, or at the end of a shorter answer.

        Returns whether the answer is over. "drip" and "hang" are not: the one only waits, the other never returns.
        """
        script = self._script
        if script.fault == "drip" and not last:
            await asyncio.sleep(script.seconds)
        if script.fault in (None, "drip") or not (index == script.after_tokens or last):
            return False
        self.failed = True
        await self._strike(model, piece)
        return True

    async def _strike(self, model: ScriptedModel, piece: str) -> None:
        script, exchange = self._script, self._exchange
        match script.fault:
            case "hang":
                await asyncio.Event().wait()
            case "cut" | "close":
                exchange.close()
            case "cut_line":
                line = json.dumps(self._line(model, piece or "x")).encode()
                await exchange.send(line[: len(line) // 2])
                exchange.close()
            case "reset":
                exchange.reset()
            case "no_done":
                await exchange.finish()
            case "error_line":
                await self._finish_with([json.dumps({"error": script.error}).encode() + b"\n"])
            case "garbage":
                await self._finish_with([b"}{ not json\n"])
            case "huge_line":
                await self._huge_line(model)

    async def _finish_with(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            await self._exchange.send(chunk)
        await self._exchange.finish()

    async def _huge_line(self, model: ScriptedModel) -> None:
        """A line of valid JSON of `size_bytes`, sent in pieces so that this server needs no such memory."""
        head, _, tail = json.dumps(self._line(model, "@@")).partition("@@")
        await self._exchange.send(head.encode())
        left, piece = self._script.size_bytes, b"x" * 65536
        while left > 0:
            await self._exchange.send(piece[:left])
            left -= len(piece)
        await self._finish_with([tail.encode() + b"\n"])

    async def _read_prompt(self, model: ScriptedModel) -> int:
        """Take the time that the prompt's evaluation takes; returns its number of tokens."""
        count = max(len(replies.tokens(replies.prompt_text(self._endpoint, self._body))), 1)
        if model.prompt_tokens_per_second:
            await asyncio.sleep(count / model.prompt_tokens_per_second)
        return count

    async def _pace(self, began_ns: int, produced: int, rate: float | None) -> None:
        """Wait until the token number `produced` is due."""
        if rate:
            await asyncio.sleep(max(0.0, produced / rate - (time.perf_counter_ns() - began_ns) / 1e9))

    def _limited(self, pieces: list[str]) -> tuple[list[str], str]:
        limit = (self._body.get("options") or {}).get("num_predict", -1)
        if isinstance(limit, int) and 0 <= limit < len(pieces):
            return pieces[:limit], "length"
        return pieces, "stop"

    def _line(self, model: ScriptedModel, text: str, *, done: bool = False, thinking: str = "") -> dict[str, Any]:
        line: dict[str, Any] = {"model": self._body.get("model", model.full_name), "created_at": replies.now()}
        if self._endpoint == "chat":
            line["message"] = {"role": "assistant", "content": text} | ({"thinking": thinking} if thinking else {})
        else:
            line |= {"response": text} | ({"thinking": thinking} if thinking else {})
        return line | {"done": done}

    async def _send(self, line: dict[str, Any]) -> None:
        await self._exchange.send(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def _bytes(data: str | bytes) -> bytes:
    return data if isinstance(data, bytes) else data.encode()
