"""Cutting a prompt to the context, with an engine whose tokens are bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ai_task_orchestra.model_backend.prompts import PromptRules, chat_prompt, cut_middle, fit
from ai_task_orchestra.model_backend.protocol import ProtocolError
from tests.unit.model_backend.fakes import FakeEngine

RULES = PromptRules(
    context_length=60, num_keep=4, templated=True, adds_bos=False, truncate=True, shift=True, schema=None
)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in contents]


async def prompt(messages: list[dict[str, str]], rules: PromptRules = RULES) -> str | list[int]:
    return await chat_prompt(FakeEngine(), messages, rules)  # type: ignore[arg-type]


async def test_a_chat_that_fits_is_left_alone_without_counting() -> None:
    engine = FakeEngine()
    assert await chat_prompt(engine, turns("a", "b"), RULES) == "user:a;user:b;"  # type: ignore[arg-type]
    assert engine.rendered == [["a", "b"]]


async def test_the_oldest_messages_are_dropped_until_the_rest_fits() -> None:
    chat = turns(*(f"message {number}" for number in range(9)))
    assert await prompt(chat) == "user:message 6;user:message 7;user:message 8;"
    assert await prompt(chat, replace(RULES, context_length=45)) == "user:message 7;user:message 8;"


async def test_every_possible_length_keeps_the_longest_tail_that_fits() -> None:
    chat = turns(*("x" * number for number in range(8)))
    sizes = [len(await _whole(chat[start:])) for start in range(8)]
    for context in range(15, sizes[0] + 5):
        expected = next((start for start, size in enumerate(sizes) if size < context), 7)
        text = await prompt(chat, replace(RULES, context_length=context))
        if sizes[expected] < context:
            assert text == await _whole(chat[expected:])
        else:
            assert isinstance(text, list)  # not even the last message fits


async def _whole(messages: list[dict[str, str]]) -> str:
    return await FakeEngine().render(messages)


async def test_system_messages_stay_whatever_is_dropped() -> None:
    chat = [{"role": "system", "content": "be brief"}, *turns(*("old" * 5 for _ in range(6)), "new")]
    text = await prompt(chat)
    assert isinstance(text, str)
    assert text.startswith("system:be brief;user:")
    assert text.endswith("user:new;")


async def test_a_last_message_that_is_too_long_itself_loses_its_middle() -> None:
    text = await prompt(turns("old", "0123456789" * 10))
    assert isinstance(text, list)
    assert bytes(text).startswith(b"user")
    assert bytes(text).endswith(b"56789;")
    assert len(text) == 32  # 4 kept, half of the other 56 stays free


async def test_nothing_is_cut_when_that_is_forbidden() -> None:
    chat = turns("old", "0123456789" * 10)
    assert await prompt(chat, replace(RULES, truncate=False)) == await _whole(chat)
    with pytest.raises(ProtocolError, match="longer than the context") as caught:
        await prompt(chat, replace(RULES, shift=False))
    assert caught.value.status == 400


async def test_a_base_model_gets_the_texts_alone() -> None:
    chat = [{"role": "system", "content": "intro"}, *turns("once upon")]
    assert await prompt(chat, replace(RULES, templated=False)) == "intro\n\nonce upon"


async def test_raw_text_is_cut_by_the_same_rule() -> None:
    assert await fit(FakeEngine(), "short", RULES) == "short"  # type: ignore[arg-type]
    cut = await fit(FakeEngine(), "a" * 100, RULES)  # type: ignore[arg-type]
    assert len(cut) == 32


@pytest.mark.parametrize("keep", [-1, 0, 4, 30, 59, 500])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_what_is_left_always_fits_and_begins_and_ends_as_before(keep: int, adds_bos: bool) -> None:
    tokens = list(range(1000))
    left = cut_middle(tokens, replace(RULES, num_keep=keep, adds_bos=adds_bos))
    assert 0 < len(left) < RULES.context_length
    kept = min(keep + adds_bos if keep >= 0 else 1000, 59)
    assert left[:kept] == tokens[:kept]
    assert left[kept:] == tokens[1000 - (len(left) - kept) :]
