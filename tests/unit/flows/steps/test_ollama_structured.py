"""Answers in JSON: what counts as one, and the single repair."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ai_task_orchestra.errors import ModelOutputError, StepInputError
from flows.clients.ollama_answer import ModelAnswer
from flows.steps.ollama_structured import JsonFormat, in_format
from flows.usage import ModelCall

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


class Model:
    """Gives the prepared answers in turn and remembers what it was asked."""

    def __init__(self, *texts: str, truncated: bool = False) -> None:
        self._texts = list(texts)
        self._truncated = truncated
        self.corrections: list[str | None] = []

    async def ask(self, correction: str | None) -> ModelAnswer:
        self.corrections.append(correction)
        return ModelAnswer(self._texts.pop(0), ModelCall(model="m"), truncated=self._truncated)


@pytest.mark.parametrize("text", ['{"name": "Maria", "age": 34}', '```json\n{"name": "Maria", "age": 34}\n```'])
async def test_an_answer_that_fits_is_parsed_at_once(text: str) -> None:
    model = Model(text)
    answer, parsed = await in_format(PERSON, model.ask)
    assert parsed == {"name": "Maria", "age": 34}
    assert answer.text == text
    assert model.corrections == [None]


@pytest.mark.parametrize("bad", ["", "Maria", '{"name": "Maria", "age": "old"}', '{"name": "Maria"}', "[NaN]"])
async def test_an_answer_that_does_not_fit_is_asked_for_once_more(bad: str) -> None:
    model = Model(bad, '{"name": "Maria", "age": 34}')
    _, parsed = await in_format(PERSON, model.ask)
    assert parsed["age"] == 34
    assert len(model.corrections) == 2
    assert "corrected JSON" in str(model.corrections[1])


async def test_two_answers_that_do_not_fit_are_an_error_that_quotes_little() -> None:
    model = Model("no", "still no " * 1000)
    with pytest.raises(ModelOutputError) as caught:
        await in_format("json", model.ask)
    assert caught.value.retryable
    assert len(caught.value.message) < 320
    assert len(model.corrections) == 2


async def test_an_answer_cut_at_its_limit_is_not_asked_for_again() -> None:
    model = Model('{"name": "Ma', truncated=True)
    with pytest.raises(ModelOutputError, match="cut off") as caught:
        await in_format(PERSON, model.ask)
    assert not caught.value.retryable
    assert len(model.corrections) == 1


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"properties": 3},
        {"$ref": "http://127.0.0.1:9/schema"},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
    ],
)
def test_a_schema_that_is_none_is_the_templates_mistake(schema: dict[str, Any]) -> None:
    with pytest.raises(StepInputError, match="format"):
        JsonFormat(schema).parse("{}")


def test_patterns_are_checked_in_linear_time() -> None:
    form = JsonFormat({"type": "string", "pattern": "^(a+)+$"})
    began = time.monotonic()
    with pytest.raises(ValueError, match="pattern"):
        form.parse('"' + "a" * 60 + '!"')
    assert time.monotonic() - began < 1
    assert form.parse('"aaa"') == "aaa"


def test_patterns_of_property_names_are_left_to_the_model_server() -> None:
    schema = {"type": "object", "patternProperties": {"^(a+)+$": {"type": "string"}}, "additionalProperties": False}
    assert JsonFormat(schema).parse('{"' + "a" * 60 + '!": 1}')


def test_deep_nesting_is_an_answer_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="deeply"):
        JsonFormat("json").parse("[" * 100_000)
