"""docs/scripted-ollama.md names every field, fault and counter there is, and its script file works."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import yaml

from ai_task_orchestra.testing.model_memory import Statistics
from ai_task_orchestra.testing.scripted_models import Endpoint, Fault, Script, ServerSpec

TEXT = (Path(__file__).parents[3] / "docs" / "scripted-ollama.md").read_text()


def test_the_script_file_of_the_document_is_one() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.S)
    spec = ServerSpec.model_validate(yaml.safe_load(block))
    assert [model.name for model in spec.models] == ["llama3.1:8b", "qwen2.5:7b"]


def test_every_fault_field_endpoint_and_counter_is_named() -> None:
    words = set(re.findall(r"\w+", TEXT))
    known = {*get_args(Fault), *get_args(Endpoint), *Script.model_fields, *(each.name for each in fields(Statistics))}
    assert known - words == set()
