"""How much content `ollama_analyze` puts into a model's context."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_task_orchestra.errors import StepInputError
from flows.steps.ollama_analyze import BYTES_PER_TOKEN, FRAME_TOKENS, MAX_CONTEXT_TOKENS, plan_context


def test_a_short_content_asks_for_no_other_context() -> None:
    plan = plan_context("short", other_bytes=300, max_tokens=500, loaded=None, most=8192)
    assert (plan.content, plan.num_ctx, plan.is_cut) == ("short", None, False)


def test_a_loaded_context_that_is_large_enough_is_kept() -> None:
    plan = plan_context("x" * 18_000, other_bytes=300, max_tokens=500, loaded=16_384, most=131_072)
    assert (plan.num_ctx, plan.is_cut) == (16_384, False)


def test_a_long_content_asks_for_the_next_power_of_two() -> None:
    plan = plan_context("x" * 18_000, other_bytes=300, max_tokens=500, loaded=4096, most=131_072)
    assert (plan.num_ctx, plan.is_cut) == (8192, False)


def test_a_content_that_no_context_holds_is_cut_at_a_character() -> None:
    plan = plan_context("ä" * 100_000, other_bytes=300, max_tokens=500, loaded=None, most=8192)
    assert (plan.num_ctx, plan.is_cut) == (8192, True)
    assert set(plan.content) == {"ä"}


def test_no_room_for_content_at_all_is_a_mistake_in_the_fields() -> None:
    with pytest.raises(StepInputError, match="max_tokens"):
        plan_context("x", other_bytes=300, max_tokens=8192, loaded=None, most=8192)


@given(
    length=st.integers(1, 200_000),
    other=st.integers(0, 2000),
    answer=st.integers(1, 2000),
    loaded=st.sampled_from([None, 2048, 4096, 8192, 65_536]),
    most=st.sampled_from([None, 4096, 8192, 131_072]),
)
def test_what_is_sent_fits_the_context(
    length: int, other: int, answer: int, loaded: int | None, most: int | None
) -> None:
    plan = plan_context("x" * length, other_bytes=other, max_tokens=answer, loaded=loaded, most=most)
    size = plan.num_ctx or 4096
    sent = FRAME_TOKENS + answer + (other + len(plan.content)) // BYTES_PER_TOKEN
    assert sent <= size <= max(MAX_CONTEXT_TOKENS, loaded or 0)
    assert plan.is_cut == (len(plan.content) < length)
