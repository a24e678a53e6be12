"""From messages to the tokens the engine reads, cut to the context length the way Ollama does by default.

1. Messages are dropped from the front, system messages and the last one excepted, until the rest fits.
2. What is still too long loses tokens after the first `num_keep`, so that half of the context stays free to answer in.
`"truncate": false` turns both off: the engine then refuses a prompt that does not fit (400).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ai_task_orchestra.model_backend.engine import EngineClient
from ai_task_orchestra.model_backend.protocol import ProtocolError

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, "
    "raise num_ctx, or use a model with a longer context length"
)

TurnList = Sequence[dict[str, str]]


@dataclass(frozen=True)
class PromptRules:
    """How a prompt is made. `templated` False is a base model, whose messages are only joined."""

    context_length: int
    num_keep: int
    templated: bool
    adds_bos: bool
    truncate: bool
    shift: bool
    schema: dict[str, Any] | None

    @property
    def limit(self) -> int:
        """The longest prompt in tokens: one place is for the first token of the answer."""
        return self.context_length - 1


async def chat_prompt(engine: EngineClient, messages: TurnList, rules: PromptRules) -> str | list[int]:
    """The prompt for `messages`: text when it surely fits, tokens when it had to be counted.

    Raises:
        ProtocolError: 400, the template or the schema is refused, or the prompt can't be made to fit.
    """
    text = await _render(engine, messages, rules)
    if rules.truncate and not _surely_fits(text, rules):
        text = await _drop_oldest(engine, messages, text, rules)
    return await fit(engine, text, rules)


async def fit(engine: EngineClient, text: str, rules: PromptRules) -> str | list[int]:
    """`text`, or its tokens with the middle left out.

    Raises:
        ProtocolError: 400, it does not fit and the context may not be shifted.
    """
    if not rules.truncate or _surely_fits(text, rules):
        return text
    tokens = await engine.tokenize(text)
    if len(tokens) <= rules.limit:
        return text
    if not rules.shift:
        raise ProtocolError(400, TOO_LONG)
    return cut_middle(tokens, rules)


def cut_middle(tokens: list[int], rules: PromptRules) -> list[int]:
    """The first `num_keep` tokens and the last ones; half of what is not kept stays free for the answer."""
    keep = len(tokens) if rules.num_keep < 0 else rules.num_keep
    keep = min(keep + rules.adds_bos, rules.limit)
    room = rules.context_length - max((rules.context_length - keep) // 2, 1)
    return tokens[:keep] + tokens[len(tokens) - (room - keep) :] if room > keep else tokens[:keep]


async def _drop_oldest(engine: EngineClient, messages: TurnList, whole: str, rules: PromptRules) -> str:
    """The rendering of the longest tail that fits, or of the last message alone. Found by halving: fewer is shorter."""
    if await _count(engine, whole) <= rules.limit:
        return whole
    fitting, too_long = len(messages) - 1, 0
    best = await _render(engine, tail(messages, fitting), rules)
    while fitting - too_long > 1:
        middle = (fitting + too_long) // 2
        text = await _render(engine, tail(messages, middle), rules)
        if await _count(engine, text) <= rules.limit:
            fitting, best = middle, text
        else:
            too_long = middle
    return best


def tail(messages: TurnList, start: int) -> list[dict[str, str]]:
    """The messages from `start` on, after all earlier system messages."""
    return [turn for turn in messages[:start] if turn["role"] == "system"] + list(messages[start:])


async def _render(engine: EngineClient, messages: TurnList, rules: PromptRules) -> str:
    if rules.templated:
        return await engine.render(messages, rules.schema)
    return "\n\n".join(turn["content"] for turn in messages if turn["content"])


async def _count(engine: EngineClient, text: str) -> int:
    return len(await engine.tokenize(text))


def _surely_fits(text: str, rules: PromptRules) -> bool:
    """A token is at least one byte, apart from the few special ones that the tokenizer adds."""
    return len(text.encode()) < rules.context_length - 2
