"""What a task leaves behind in Prefect: the answer for people, and the report that the API reads.

Both are artifacts of the flow run. Text of models, scripts and users is data in them: fenced, so that nothing in it
becomes HTML, a link or an image in Prefect's UI, and without the characters that PostgreSQL can't store.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate

from ai_task_orchestra.errors import OrchestraError, StepError
from ai_task_orchestra.protocol import (
    ANSWER_ARTIFACT_DESCRIPTION,
    MAX_REPORT_IN_STATE_BYTES,
    REPORT_ARTIFACT_DESCRIPTION,
    REPORT_ARTIFACT_TYPE,
    AttemptReport,
    ErrorReport,
    ReportCarrier,
)

MAX_MESSAGE_CHARACTERS: Final = 2000
MAX_ANSWER_CHARACTERS: Final = 64 * 1024
MAX_RESULT_BYTES: Final = 16 * 1024 * 1024

_INTEGERS: Final = range(-(2**63), 2**63)
# NUL, which PostgreSQL can't store, and halves of surrogate pairs, which UTF-8 can't.
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
# How those, and integers that may not fit 64 bits, look in JSON that is all ASCII.
_SUSPICIOUS: Final = re.compile(r"\\u(?:0000|d[89a-f])|[0-9]{19}")


class ResultTooLargeError(OrchestraError):
    """The task's result is too large to be kept."""

    code = "result_too_large"


def storable(value: Any) -> Any:
    """`value` as JSON that can be stored.

    What JSON or PostgreSQL can't hold is replaced: NUL and lone surrogates by U+FFFD, NaN and infinities by null,
    integers beyond 64 bits by their digits as text.

    Raises:
        ResultTooLargeError: as JSON it is larger than 16 MiB.
        TypeError: it holds something that is no JSON value.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        value = _cleaned(value)
        text = json.dumps(value, allow_nan=False)
    if len(text) > MAX_RESULT_BYTES:
        raise ResultTooLargeError(f"The task's result is larger than {MAX_RESULT_BYTES} bytes.")
    return _cleaned(value) if _SUSPICIOUS.search(text) else value


def bounded_message(error: OrchestraError) -> str:
    """`step 'x': reason` (or the reason alone), short enough for a state of a flow run."""
    step = error.step if isinstance(error, StepError) else None
    return _bounded(f"step {step!r}: {error.message}" if step else error.message)


def error_report(error: OrchestraError) -> ErrorReport:
    """The error as the API shows it."""
    report: ErrorReport = {"type": error.code, "message": _bounded(error.message)}
    if isinstance(error, StepError) and error.step:
        report["step"] = error.step
    return report


def answer_markdown(result: Mapping[str, Any], usage: Mapping[str, Any]) -> str:
    """The result for people: the output, then the other fields and the usage, each in a fence."""
    parts = []
    if "output" in result:
        parts.append(_fenced(result["output"]))
    if rest := {name: value for name, value in result.items() if name != "output"}:
        parts.append(f"**Result**\n\n{_fenced(rest)}")
    if usage:
        parts.append(f"**Resource usage**\n\n{_fenced(usage)}")
    return "\n\n".join(parts) or "(no result)"


async def hand_in(client: PrefectClient, flow_run_id: UUID, report: AttemptReport) -> None:
    """Store the report and, for a task with a result, the answer for people.

    Our worker's client takes a small report along with the final state, and does not keep the run waiting for the
    answer; otherwise both are in Prefect when this returns.

    Raises:
        httpx.HTTPError: Prefect did not take them.
    """
    answer = _answer(flow_run_id, report)
    if isinstance(client, ReportCarrier) and _size(report) <= MAX_REPORT_IN_STATE_BYTES:
        client.carry_report(report)
        if answer:
            client.create_artifact_beside(answer)
        return
    whole = ArtifactCreate(
        type=REPORT_ARTIFACT_TYPE, description=REPORT_ARTIFACT_DESCRIPTION, data=dict(report), flow_run_id=flow_run_id
    )
    async with asyncio.TaskGroup() as group:
        for artifact in [answer, whole] if answer else [whole]:
            group.create_task(client.create_artifact(artifact))


def _answer(flow_run_id: UUID, report: AttemptReport) -> ArtifactCreate | None:
    result = report.get("result")
    if not result:  # nothing that people could look at
        return None
    text = answer_markdown(result, report.get("resource_usage", {}))
    return ArtifactCreate(type="markdown", description=ANSWER_ARTIFACT_DESCRIPTION, data=text, flow_run_id=flow_run_id)


def _size(report: AttemptReport) -> int:
    return len(json.dumps(report))


def _fenced(value: Any) -> str:
    """Text in a code fence longer than any run of backticks in it; anything but text as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
    if len(text) > MAX_ANSWER_CHARACTERS:
        text = f"{text[:MAX_ANSWER_CHARACTERS]}\n... ({len(text)} characters in all)"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{'text' if isinstance(value, str) else 'json'}\n{text}\n{fence}"


def _bounded(text: str) -> str:
    text = _UNSTORABLE.sub("\ufffd", text)
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else f"{text[: MAX_MESSAGE_CHARACTERS - 3]}..."


def _cleaned(value: Any) -> Any:
    match value:
        case str():
            return _UNSTORABLE.sub("\ufffd", value)
        case float() if not math.isfinite(value):
            return None
        case int() if value not in _INTEGERS:
            return str(value)
        case Mapping():
            return {_cleaned(name): _cleaned(item) for name, item in value.items()}
        case list() | tuple():
            return [_cleaned(item) for item in value]
    return value
