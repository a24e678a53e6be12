"""An answer of the model server, put together from the lines of its stream."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import ollama

from flows.usage import ModelCall


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in the server's memory; None where the server does not say."""

    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """A whole answer.

    `truncated`: the model stopped at its token limit, or the text passed `max_output_bytes` and was cut there.
    `message` is that of a chat: role, content, thinking and tool_calls where there are any.
    """

    text: str
    call: ModelCall
    truncated: bool = False
    done_reason: str | None = None
    message: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """What one line adds to the answer."""

    text: str = ""
    thinking: str = ""
    role: str = "assistant"
    tool_calls: tuple[dict[str, Any], ...] = ()


class Collected:
    """The parts of an answer so far, no more than `max_bytes` of text and thinking."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._parts: list[Part] = []
        self.is_full = False

    @property
    def is_empty(self) -> bool:
        """Whether no line came yet."""
        return not self._parts

    def add(self, part: Part) -> None:
        """Take in one line's part, as far as it fits."""
        text, thinking = self._cut(part.text), self._cut(part.thinking)
        self._parts.append(Part(text, thinking, part.role, self._whole(part.tool_calls)))

    def _whole(self, tool_calls: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        """Half a tool call is of no use to anybody."""
        size = len(json.dumps(tool_calls)) if tool_calls else 0
        if size > self._left:
            self.is_full = True
            return ()
        self._left -= size
        return tool_calls

    def _cut(self, text: str) -> str:
        data = text.encode("utf-8", "replace")
        if len(data) > self._left:
            self.is_full = True
            data = data[: self._left]
        self._left -= len(data)
        return data.decode("utf-8", "ignore")

    def answer(self, call: ModelCall, done_reason: str | None) -> ModelAnswer:
        """The parts as one."""
        text = "".join(part.text for part in self._parts)
        thinking = "".join(part.thinking for part in self._parts)
        tool_calls = [tool_call for part in self._parts for tool_call in part.tool_calls]
        message: dict[str, Any] = {"role": self._parts[0].role, "content": text}
        if thinking:
            message["thinking"] = thinking
        if tool_calls:
            message["tool_calls"] = tool_calls
        return ModelAnswer(text, call, self.is_full or done_reason == "length", done_reason, message)


def generated(line: ollama.GenerateResponse) -> Part:
    """What a line of /api/generate adds."""
    return Part(line.response or "", line.thinking or "")


def chatted(line: ollama.ChatResponse) -> Part:
    """What a line of /api/chat adds."""
    calls = tuple(call.model_dump(exclude_none=True) for call in line.message.tool_calls or ())
    return Part(line.message.content or "", line.message.thinking or "", line.message.role, calls)


def model_call(model: str, last: ollama.GenerateResponse | ollama.ChatResponse, loaded: LoadedModel) -> ModelCall:
    """The engine's counts; Ollama leaves out those that are zero."""
    return ModelCall(
        model=model,
        evaluation_seconds=seconds(last.prompt_eval_duration) + seconds(last.eval_duration),
        load_seconds=seconds(last.load_duration),
        prompt_tokens=last.prompt_eval_count or 0,
        output_tokens=last.eval_count or 0,
        memory_bytes=loaded.memory_bytes,
        gpu_memory_bytes=loaded.gpu_memory_bytes,
    )


def seconds(nanoseconds: int | None) -> float:
    """Of one of the engine's durations."""
    return max(nanoseconds or 0, 0) / 1e9
