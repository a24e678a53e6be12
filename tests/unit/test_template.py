"""What a template file may say, and what is an error in which line."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.errors import TemplateError
from ai_task_orchestra.template import TemplateSpec, parse_template

PATH = Path("some/template.yaml")

GOOD = """\
name: sample
description: A sample
parameters:
  - {name: text, type: string, required: true, description: Text}
  - {name: count, type: integer, required: false, description: Count}
  - {name: ratio, type: number, required: false, description: Ratio, default: 0.5}
  - {name: items, type: array, required: false, description: Items, default: [a]}
steps:
  - type: ollama_generate
    name: ask
    model: m
    prompt: "{{ text }} {{ count }}"
  - type: store_result
    path: out.txt
    when: "{{ count }}"
    timeout_seconds: 5
    retries: 2
    retry_delay_seconds: 0.5
result:
  output: "{{ steps.ask.output }}"
timeout_seconds: 60
retries: 1
on_worker_loss: fail
work_pool: gpu
resources: {gpu_memory_gb: 8}
"""


def parse(text: str) -> TemplateSpec:
    return parse_template(textwrap.dedent(text), PATH)


def problem(text: str) -> TemplateError:
    with pytest.raises(TemplateError) as caught:
        parse(text)
    assert caught.value.path == PATH
    assert str(caught.value).startswith(f"{PATH}:{caught.value.line}: ")
    return caught.value


def with_steps(steps: str, more: str = "") -> str:
    head = """\
name: sample
description: A sample
parameters:
  - {name: text, type: string, description: Text}
  - {name: count, type: integer, required: false, description: Count}
  - {name: files, type: array, required: false, description: Files}
"""
    return head + "steps:\n" + textwrap.indent(textwrap.dedent(steps), "  ") + textwrap.dedent(more)


def test_a_template_is_read_completely() -> None:
    spec = parse(GOOD)
    assert (spec.name, spec.identifier, spec.description) == ("sample", "sample", "A sample")
    assert [parameter.name for parameter in spec.parameters] == ["text", "count", "ratio", "items"]
    ask, store = spec.steps
    assert (ask.type, ask.name, ask.fields) == (
        "ollama_generate",
        "ask",
        {"model": "m", "prompt": "{{ text }} {{ count }}"},
    )
    assert (store.name, store.fields, store.when) == ("store_result", {"path": "out.txt"}, "{{ count }}")
    assert (store.timeout_seconds, store.retries, store.retry_delay_seconds) == (5, 2, 0.5)
    assert spec.result == {"output": "{{ steps.ask.output }}"}
    assert (spec.timeout_seconds, spec.retries, spec.on_worker_loss, spec.work_pool) == (60, 1, "fail", "gpu")
    assert spec.resources == {"gpu_memory_gb": 8}
    assert spec.path == PATH


def test_steps_are_shown_as_written() -> None:
    assert parse(GOOD).steps_as_written[1] == {
        "type": "store_result",
        "path": "out.txt",
        "when": "{{ count }}",
        "timeout_seconds": 5,
        "retries": 2,
        "retry_delay_seconds": 0.5,
    }


def test_the_defaults_are_the_promised_ones() -> None:
    spec = parse("name: a\ndescription: b\nsteps: [{type: wait, seconds: 1}]")
    assert (spec.parameters, spec.result, spec.retries, spec.on_worker_loss) == ((), None, 0, "rerun")
    assert (spec.steps[0].name, spec.steps[0].retries, spec.steps[0].timeout_seconds) == ("wait", 0, None)


@pytest.mark.parametrize(
    ("written", "line", "reason"),
    [
        ("[1]", 1, "a template is an object"),
        ("just text", 1, "a template is an object"),
        ("description: x\nsteps: [{type: wait, seconds: 1}]", 1, "'name' is missing"),
        ("name: a\nsteps: [{type: wait, seconds: 1}]", 1, "'description' is missing"),
        ("name: a\ndescription: x", 1, "'steps' is missing"),
        ("name: a\ndescription: x\nsteps: []", 3, "at least one step"),
        ("name: a\ndescription: x\nsteps: [5]", 3, "a step must be an object"),
        ("name: a\ndescription: x\nsteps:\n - seconds: 1", 4, "'type' is missing"),
        ("name: A b\ndescription: x\nsteps: [{type: wait, seconds: 1}]", 1, "name: "),
        ('name: "a\\n"\ndescription: x\nsteps: [{type: wait, seconds: 1}]', 1, "name: "),
        ("name: a\ndescription: x\nsteps: [{type: wait, seconds: 1}]\npath: /etc", 4, "unknown field 'path'"),
        ("name: a\ndescription: x\ntimeout: 5\nsteps: [{type: wait, seconds: 1}]", 3, "unknown field 'timeout'"),
        ("name: a\ndescription: x\nretries: many\nsteps: [{type: wait, seconds: 1}]", 3, "retries: "),
        ("name: a\ndescription: x\nretries: true\nsteps: [{type: wait, seconds: 1}]", 3, "retries: "),
        ("name: a\ndescription: x\non_worker_loss: ask\nsteps: [{type: wait, seconds: 1}]", 3, "on_worker_loss: "),
        ("name: a\ndescription: x\nsteps:\n - type: wait\n   seconds: 1\n   retries: -1", 6, "retries: "),
        ("name: a\ndescription: x\nsteps:\n - type: wait\n   seconds: 1\n   name: a.b", 6, "name: "),
        ("name: a\ndescription: x\nparameters:\n - name: p\n   kind: x\nsteps: []", 4, "'type' is missing"),
    ],
)
def test_a_wrong_shape_is_an_error_in_its_line(written: str, line: int, reason: str) -> None:
    error = problem(written)
    assert reason in error.reason
    assert error.line == line


def test_a_parameter_error_points_to_the_field_at_fault() -> None:
    error = problem(
        """\
        name: a
        description: x
        parameters:
          - name: p
            type: integer
            description: P
            required: false
            minimum: 5
            default: 3
        steps: [{type: wait, seconds: 1}]
        """
    )
    assert (error.line, error.reason) == (9, "default must be at least 5")


@pytest.mark.parametrize(
    ("steps", "line", "reason"),
    [
        ("- type: wait\n  seconds: 1\n- type: olama_generate", 10, "unknown step type 'olama_generate' (did you mean"),
        ("- type: wait\n  seconds: 1\n  minutes: 2", 10, "unknown field 'minutes'"),
        ("- type: ollama_generate\n  model: m\n  promt: x", 10, "(did you mean 'prompt'?)"),
        ("- type: wait", 8, "needs the field 'seconds'"),
        ("- type: wait\n  seconds:", 9, "must be number, not null"),
        ("- type: wait\n  seconds: soon", 9, "must be number, not string"),
        ("- type: wait\n  seconds: true", 9, "must be number, not boolean"),
        ('- type: wait\n  seconds: "{{ text }}"', 9, "{{ text }} is string"),
        ('- type: wait\n  seconds: "1{{ count }}"', 9, "must be number, not string"),
        ('- type: wait\n  seconds: "{{ nothing }}"', 9, "unknown parameter in {{ nothing }}"),
        ('- type: wait\n  seconds: "{{ coun }}"', 9, "(did you mean 'count'?)"),
        ('- type: wait\n  seconds: "{{ count + 1 }}"', 9, "is no placeholder"),
        ("- type: read_files\n  files:\n    - a\n    - '{{ b }}'", 11, "unknown parameter in {{ b }}"),
        ("- type: http_request\n  url: u\n  json:\n    a: 1\n    '{{ text }}': 1", 12, "can hold no placeholder"),
        ("- type: wait\n  seconds: 1\n- type: wait\n  seconds: 2", 10, "two steps are called 'wait'"),
        (
            "- type: wait\n  seconds: 1\n  name: a\n- type: wait\n  seconds: 2\n  name: a",
            13,
            "two steps are called 'a'",
        ),
        ("- type: store_result\n  path: x", 8, "'content' is missing"),
        ("- type: wait\n  seconds: 1\n- type: store_result\n  path: x", 10, "'content' is missing"),
        ("- type: store_result\n  path: x\n  content: '{{ steps.ask.output }}'", 10, "no step before is called 'ask'"),
        ("- type: wait\n  seconds: '{{ steps.wait.output }}'", 9, "no step before is called 'wait'"),
        (
            "- type: git_clone\n  repo: r\n- type: store_result\n  path: x\n  content: '{{ steps.git_clone.output }}'",
            12,
            "has no output 'output' (it has: path, commit)",
        ),
        ("- type: wait\n  seconds: 1\n  when: yes", 10, "'when' must be one placeholder"),
        ("- type: wait\n  seconds: 1\n  when: '{{ text }}!'", 10, "'when' must be one placeholder"),
        ("- type: wait\n  seconds: 1\n  when: '{{ nobody }}'", 10, "unknown parameter"),
        ("- type: wait\n  seconds: 1\n  timeout_seconds: soon", 10, "'timeout_seconds' must be number"),
        ("- type: wait\n  seconds: 1\n  timeout_seconds: 0", 10, "timeout_seconds"),
        ("- type: wait\n  seconds: 1\n  timeout_seconds: '{{ text }}'", 10, "{{ text }} is string"),
    ],
)
def test_a_step_that_can_not_work_is_an_error_in_its_line(steps: str, line: int, reason: str) -> None:
    error = problem(with_steps(steps))
    assert reason in error.reason
    assert error.line == line


def test_a_placeholder_may_name_earlier_steps_only() -> None:
    steps = """\
    - {type: wait, seconds: 1, when: "{{ steps.later.output }}"}
    - {type: http_request, url: u, name: later}
    """
    assert "no step before is called 'later'" in problem(with_steps(steps)).reason


def test_a_result_is_checked_like_a_field() -> None:
    more = """\
    result:
      output: "{{ steps.wait.output }}"
    """
    error = problem(with_steps("- {type: wait, seconds: 1}\n", more))
    assert (error.line, "has no output 'output'" in error.reason) == (10, True)


def test_two_parameters_of_one_name_are_an_error() -> None:
    text = """\
    name: a
    description: x
    parameters:
      - {name: p, type: string, description: P}
      - {name: p, type: integer, description: P}
    steps: [{type: wait, seconds: 1}]
    """
    error = problem(text)
    assert (error.line, error.reason) == (5, "two parameters are called 'p'; each needs a name of its own")


def test_an_integer_placeholder_fits_a_number_field_and_a_number_may_turn_out_whole() -> None:
    parse(with_steps('- {type: wait, seconds: "{{ count }}"}'))
    text = GOOD.replace("prompt:", 'keep_alive: "{{ ratio }}"\n    prompt:')
    parse(text)
    analyze = '- {type: ollama_analyze, model: m, content: x, max_tokens: "{{ ratio }}"}'
    parse(with_steps(analyze).replace("type: integer", "type: number").replace("name: count", "name: ratio"))


def test_content_is_found_in_any_step_before() -> None:
    steps = """\
    - {type: read_files, files: "{{ files }}"}
    - {type: wait, seconds: 1}
    - {type: store_result, path: x}
    """
    parse(with_steps(steps))


def test_all_problems_with_parameters_are_named_at_once_and_sorted() -> None:
    check = parse(GOOD).check({"zeta": 1, "count": 3.0, "alpha": None, "ratio": "x"})
    assert not check.valid
    assert check.missing == ["text"]
    assert check.invalid == ["alpha", "count", "ratio", "zeta"]
    assert list(check.errors) == ["alpha", "count", "ratio", "text", "zeta"]
    assert check.errors["text"] == "is missing"
    assert check.errors["zeta"] == "is no parameter of this template"
    assert check.errors["count"] == "must be an integer, not a number"


@pytest.mark.parametrize("given", [{"text": ""}, {"text": "x", "count": 1, "ratio": 1, "items": []}])
def test_parameters_that_fit_are_valid(given: dict[str, Any]) -> None:
    check = parse(GOOD).check(given)
    assert (check.valid, check.missing, check.invalid, check.errors) == (True, [], [], {})


def test_defaults_are_filled_in_and_stay_untouched() -> None:
    spec = parse(GOOD)
    complete = spec.with_defaults({"text": "x"})
    assert complete == {"text": "x", "ratio": 0.5, "items": ["a"]}
    complete["items"].append("b")
    assert spec.with_defaults({"text": "x"})["items"] == ["a"]
    assert spec.with_defaults({"text": "x", "ratio": 0.1})["ratio"] == 0.1
