"""`read_files`, `format_output`, `store_result` and `wait`; and that every step type has its implementation."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.errors import StepInputError
from ai_task_orchestra.step_types import STEP_TYPES
from flows.steps import STEPS
from flows.steps.base import StepContext
from flows.steps.format_output import FormatOutput
from flows.steps.read_files import ReadFiles
from flows.steps.store_result import StoreResult
from flows.steps.wait import Wait
from tests.support.steps import step_context


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    inputs = tmp_path / "inputs"
    for name, text in {"b.txt": "bee", "a.txt": "ay", "sub/c.txt": "sea", "sub/d.md": "dee", "[x].txt": "ex"}.items():
        (inputs / name).parent.mkdir(parents=True, exist_ok=True)
        (inputs / name).write_text(text)
    return step_context(tmp_path, max_output_bytes=1000)


async def read(context: StepContext, *files: Any) -> dict[str, Any]:
    return await ReadFiles().run({"files": list(files)}, context)


def test_every_step_type_has_one_implementation() -> None:
    assert STEPS.keys() == STEP_TYPES.keys()
    assert all(step.type == name for name, step in STEPS.items())


async def test_one_file_is_its_text(context: StepContext) -> None:
    assert await read(context, "a.txt") == {"files": ["a.txt"], "content": "ay"}


async def test_several_files_stand_below_their_names_sorted_and_each_once(context: StepContext) -> None:
    given = await read(context, "b.txt", "*.txt", "a.txt", str(context.settings.home / "inputs" / "b.txt"))

    assert given["files"] == ["[x].txt", "a.txt", "b.txt"]
    assert given["content"] == "=== [x].txt ===\nex\n\n=== a.txt ===\nay\n\n=== b.txt ===\nbee"


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("[x].txt", ["[x].txt"]),
        ("[ab].txt", ["a.txt", "b.txt"]),
        ("sub/*", ["sub/c.txt", "sub/d.md"]),
        ("**/*.txt", ["[x].txt", "a.txt", "b.txt", "sub/c.txt"]),
        ("?.txt", ["a.txt", "b.txt"]),
    ],
)
async def test_globs_find_files_only(context: StepContext, pattern: str, files: list[str]) -> None:
    assert (await read(context, pattern))["files"] == files


@pytest.mark.parametrize("pattern", ["nothing-*.txt", "missing.txt", "sub"])
async def test_a_pattern_without_a_match_is_named(context: StepContext, pattern: str) -> None:
    with pytest.raises(StepInputError, match=pattern.replace("*", r"\*")):
        await read(context, "a.txt", pattern)


@pytest.mark.parametrize(
    "pattern", ["../x", "/etc/passwd", "/etc/*", "../*", "a/../../*", "", "a**b", "out/*", "out.txt"]
)
async def test_nothing_outside_the_input_folders_is_read(context: StepContext, tmp_path: Path, pattern: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "x").write_text("secret")
    (tmp_path / "inputs" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "inputs" / "out.txt").symlink_to(tmp_path / "secret" / "x")
    with pytest.raises(StepInputError, match=r"^files: "):
        await read(context, pattern)


async def test_files_that_are_no_text_are_refused_by_name(context: StepContext) -> None:
    inputs = context.settings.home / "inputs"
    (inputs / "bytes.bin").write_bytes(b"\xff\xfe\x00")
    (inputs / "nul.bin").write_bytes(b"a\x00b")
    for name in ("bytes.bin", "nul.bin"):
        with pytest.raises(StepInputError, match=f"{name} is no text"):
            await read(context, name)


async def test_a_byte_order_mark_is_not_part_of_the_text(context: StepContext) -> None:
    (context.settings.home / "inputs" / "bom.txt").write_bytes(b"\xef\xbb\xbftext")

    assert (await read(context, "bom.txt"))["content"] == "text"


async def test_too_much_text_is_refused_rather_than_cut(context: StepContext) -> None:
    inputs = context.settings.home / "inputs"
    for name in ("one.log", "two.log"):
        (inputs / name).write_text("x" * 501)

    assert len((await read(context, "one.log"))["content"]) == 501
    with pytest.raises(StepInputError, match="more than 1000 bytes"):
        await read(context, "*.log")


@pytest.mark.parametrize("files", [[], "a.txt", [None], [["a.txt"]]])
async def test_files_are_a_list_of_texts(context: StepContext, files: Any) -> None:
    with pytest.raises(StepInputError):
        await ReadFiles().run({"files": files}, context)


@pytest.mark.parametrize(
    ("content", "document"),
    [
        ("plain", {"content": "plain"}),
        ('{"a": [1]}', {"a": [1]}),
        (' [1, "ü"]\n', [1, "ü"]),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ("```\n[]\n```\n", []),
        ('{"a": NaN}', {"content": '{"a": NaN}'}),
        ("42", {"content": "42"}),
        ("[" * 100_000, {"content": "[" * 100_000}),
        ("", {"content": ""}),
        ({"a": None}, {"a": None}),
        (3, {"content": 3}),
    ],
)
async def test_json_is_always_a_readable_document(context: StepContext, content: Any, document: Any) -> None:
    output = (await FormatOutput().run({"format": "json", "content": content}, context))["output"]

    assert json.loads(output) == document
    assert output == json.dumps(document, ensure_ascii=False, indent=2)


async def test_markdown_and_text_leave_text_alone(context: StepContext) -> None:
    for form in ("markdown", "text"):
        assert await FormatOutput().run({"format": form, "content": "# a\n*b*"}, context) == {"output": "# a\n*b*"}


async def test_what_is_no_text_is_shown_as_json(context: StepContext) -> None:
    markdown = await FormatOutput().run({"format": "markdown", "content": [1]}, context)
    text = await FormatOutput().run({"format": "text", "content": [1]}, context)

    assert markdown["output"] == "```json\n[\n  1\n]\n```"
    assert text["output"] == "[\n  1\n]"


async def test_output_can_be_stored_by_postgresql(context: StepContext) -> None:
    for content in ("a\x00b\ud800", '["\\ud800"]', ["\ud800"]):
        output = (await FormatOutput().run({"format": "json", "content": content}, context))["output"]
        output.encode()
        assert "\x00" not in output


@pytest.mark.parametrize("fields", [{"format": "xml", "content": ""}, {"format": "json"}, {"format": 3, "content": ""}])
async def test_only_the_three_formats_exist(context: StepContext, fields: dict[str, Any]) -> None:
    with pytest.raises(StepInputError):
        await FormatOutput().run(fields, context)


async def test_a_stored_result_tells_its_path_and_size(context: StepContext, tmp_path: Path) -> None:
    given = await StoreResult().run({"path": "u\u0308/x.txt", "content": "ä"}, context)

    assert given == {"path": "ü/x.txt", "bytes": 2}
    assert (tmp_path / "outputs" / "ü" / "x.txt").read_text() == "ä"


async def test_what_is_no_text_is_stored_as_json(context: StepContext, tmp_path: Path) -> None:
    await StoreResult().run({"path": "x.json", "content": {"a": [1.5, None]}}, context)

    assert json.loads((tmp_path / "outputs" / "x.json").read_text()) == {"a": [1.5, None]}


async def test_a_result_is_stored_under_the_tenant_of_its_task(context: StepContext, tmp_path: Path) -> None:
    await StoreResult().run({"path": "x", "content": "1"}, context)
    with pytest.raises(StepInputError, match="another tenant"):
        await StoreResult().run({"path": "x", "content": "2"}, step_context(tmp_path, tenant="other"))


@pytest.mark.parametrize("seconds", [-1, 86401, float("nan"), float("inf"), "1", True, None])
async def test_only_sensible_waits_are_accepted(context: StepContext, seconds: Any) -> None:
    with pytest.raises(StepInputError):
        await Wait().run({"seconds": seconds}, context)


async def test_a_wait_lasts_as_long_as_it_says(context: StepContext) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()

    assert await Wait().run({"seconds": 0.05}, context) == {}
    assert 0.05 <= loop.time() - began + 0.001 < 5
