"""The templates that come with the product, against the customer's document and what they promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.library import TemplateLibrary
from ai_task_orchestra.step_types import STEP_TYPES
from ai_task_orchestra.template import parse_template
from tests.support.reference import endpoints

ROOT = Path(__file__).parents[2]
LIBRARY = TemplateLibrary(ROOT / "templates")
REFERENCE = {endpoint.title: endpoint.response for endpoint in endpoints()}

# Beyond the two in the document: name -> (required, optional).
PROMISED = {
    "file-processing": (["input_files", "analysis_model", "output_format"], ["analysis_prompt", "max_tokens"]),
    "git-script": (
        ["repo_url", "script_path", "output_path"],
        ["branch", "script_args", "env", "timeout_seconds", "network"],
    ),
    "ollama-chat": (["model", "messages"], ["format", "options", "keep_alive", "tools"]),
    "ollama-structured": (["model", "prompt", "format"], ["system_prompt", "options", "keep_alive", "images"]),
    "ollama-embed": (["model", "texts"], ["options", "keep_alive"]),
}


def test_every_promised_template_is_there_and_usable() -> None:
    assert LIBRARY.problems == ()
    assert set(LIBRARY.templates) == {"ollama-inference", "git-script-execution", *PROMISED}


@pytest.mark.parametrize("shown", REFERENCE["List Templates"], ids=lambda shown: shown["name"])
def test_the_documents_templates_are_its_own_to_the_letter(shown: dict[str, Any]) -> None:
    spec = LIBRARY.get(shown["name"])
    assert spec.description == shown["description"]
    parameters = [parameter.as_api() for parameter in spec.parameters]
    assert parameters == shown["parameters"]
    assert [list(each) for each in parameters] == [list(each) for each in shown["parameters"]]


def test_the_steps_of_ollama_inference_are_shown_as_in_the_document() -> None:
    steps = LIBRARY.get("ollama-inference").steps_as_written
    assert steps == REFERENCE["Get Template"]["steps"]
    assert [list(step) for step in steps] == [list(step) for step in REFERENCE["Get Template"]["steps"]]


@pytest.mark.parametrize("name", PROMISED)
def test_the_other_templates_have_the_promised_parameters(name: str) -> None:
    parameters = LIBRARY.get(name).parameters
    required, optional = PROMISED[name]
    assert [each.name for each in parameters if each.required] == required
    assert [each.name for each in parameters if not each.required] == optional
    assert all(each.description for each in parameters)


def test_the_results_have_the_promised_fields() -> None:
    results = {name: set(spec.result or {"output"}) for name, spec in LIBRARY.templates.items()}
    git = {"output", "exit_code", "commit", "output_path", "files"}
    assert results == {
        "ollama-inference": {"output"},
        "git-script-execution": git,
        "git-script": git,
        "file-processing": {"output", "files"},
        "ollama-chat": {"output", "message"},
        "ollama-structured": {"output", "parsed"},
        "ollama-embed": {"output", "embeddings"},
    }


def test_the_documents_request_is_valid() -> None:
    request = next(endpoint.request for endpoint in endpoints() if endpoint.title == "Create a Task")
    assert LIBRARY.get(request["template"]).check(request["parameters"]).valid


@pytest.mark.parametrize("document", ["README.md", "docs/templates.md"])
def test_the_examples_in_the_documents_are_usable_templates(document: str) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / document).read_text(), flags=re.S)
    assert examples
    for text in examples:
        parse_template(text, Path(document))


def test_the_document_lists_every_step_type_with_its_required_fields() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "docs/templates.md").read_text(), flags=re.M)
    listed = {name: set(re.findall(r"\*\*(\w+)\*\*", fields)) for name, fields in rows if name in STEP_TYPES}
    required = {name: {f for f, spec in each.fields.items() if spec.required} for name, each in STEP_TYPES.items()}
    assert listed == required
