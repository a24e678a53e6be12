"""The checks of the model steps' fields."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.errors import StepInputError
from ai_task_orchestra.settings import Settings
from flows.steps import ollama_fields

PIXEL = b"\x89PNG pixel"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "pixel.png").write_bytes(PIXEL)
    (tmp_path / "secret.png").write_bytes(b"secret")
    return Settings(_env_file=None, home=tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "smollm2:135m",
        "llama3",
        "library/llama3.1:8b-instruct-q4_K_M",
        "hf.co/bartowski/Llama-3.2-1B-GGUF:Q4_K_M",
        "a/b",
    ],
)
def test_names_as_ollama_lists_them_are_taken(name: str) -> None:
    assert ollama_fields.model_name({"model": name}) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        None,
        7,
        "two words",
        "../x",
        "a/../b",
        "evil.host/x",
        "evil.host:80/x",
        "localhost/x/y",
        "evil/x/y",
        "http://h/x",
        "x@sha256:1",
        "a//b",
        "/a",
        "-rf",
        "a\n",
        "a:b:c",
        "x" * 300,
        "hf.co/a/b/c",
        "{{ model }}",
    ],
)
def test_other_names_are_refused_without_repeating_them(name: Any) -> None:
    with pytest.raises(StepInputError) as caught:
        ollama_fields.model_name({"model": name})
    assert not caught.value.retryable
    assert len(caught.value.message) < 120


async def test_images_come_as_base64_or_as_files_of_the_input_folders(settings: Settings) -> None:
    encoded = base64.b64encode(PIXEL).decode()
    given = [encoded, f"data:image/png;base64,{encoded}", {"file": "pixel.png"}]
    assert await ollama_fields.images(given, settings) == [PIXEL] * 3


@pytest.mark.parametrize(
    "image",
    [
        *("pixel.png", "/etc/hostname", "", "????", 7, None),
        *({"file": name} for name in ("../secret.png", "/etc/hostname", "none.png", "", 7)),
        *({"path": "pixel.png"}, {"file": "pixel.png", "x": 1}),
    ],
)
async def test_other_images_are_refused(settings: Settings, image: Any) -> None:
    with pytest.raises(StepInputError):
        await ollama_fields.images([image], settings)


async def test_images_inside_messages_are_treated_the_same(settings: Settings) -> None:
    fields = {"messages": [{"role": "user", "content": "What is it?", "images": [{"file": "pixel.png"}]}]}
    (message,) = await ollama_fields.messages(fields, settings)
    assert message.model_dump(exclude_none=True)["images"] == [base64.b64encode(PIXEL).decode()]

    fields["messages"][0]["images"] = [str(settings.home / "secret.png")]
    with pytest.raises(StepInputError, match=r"messages\[0\]\.images\[0\]"):
        await ollama_fields.messages(fields, settings)


@pytest.mark.parametrize("value", [None, [], "hi", [7], [{}], [{"content": "hi"}], [{"role": 3, "content": "x"}]])
async def test_messages_without_their_form_are_refused(settings: Settings, value: Any) -> None:
    with pytest.raises(StepInputError, match="messages"):
        await ollama_fields.messages({"messages": value}, settings)


def test_options_that_fit_are_handed_on_and_absent_ones_left_out() -> None:
    fields = {"options": {"seed": 1}, "keep_alive": "5m", "format": "json", "system": "x"}
    assert ollama_fields.call_options(fields, "options", "keep_alive", "format") == {
        "options": {"seed": 1},
        "keep_alive": "5m",
        "format": "json",
    }
    assert ollama_fields.call_options({}, "options", "keep_alive", "format") == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"options": []},
        {"options": "x"},
        {"keep_alive": "soon"},
        {"keep_alive": True},
        {"format": "xml"},
        {"format": []},
    ],
)
def test_options_that_do_not_fit_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(StepInputError, match=next(iter(fields))):
        ollama_fields.call_options(fields, *fields)


@pytest.mark.parametrize("value", [None, "", [], ["a", 1], {"a": 1}, 7])
def test_texts_to_embed_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(StepInputError, match="input"):
        ollama_fields.texts({"input": value})


def test_tools_are_checked_in_ollamas_form() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    (checked,) = ollama_fields.tools({"tools": [tool]}) or []
    assert checked.function is not None
    assert checked.function.name == "look"
    with pytest.raises(StepInputError, match="tools"):
        ollama_fields.tools({"tools": [{"function": 7}]})
