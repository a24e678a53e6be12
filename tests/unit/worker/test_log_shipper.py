"""A run's log lines on their way to Prefect."""

from __future__ import annotations

from typing import Any

from ai_task_orchestra.redaction import remember
from ai_task_orchestra.worker.log_shipper import LogShipper


class Recorder:
    """Takes lines as Prefect's client does."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    async def create_logs(self, lines: list[dict[str, Any]]) -> None:
        self.lines += lines


async def test_no_secret_leaves_in_a_log_line() -> None:
    remember("a-git-password")
    prefect: Any = Recorder()
    shipper = LogShipper(prefect)
    for text in ("git said a-git-password", "key ato_0123456789abcdef", "nothing"):
        shipper._lines.append({"message": text, "__payload_size__": 10})
    await shipper.ship()

    assert [line["message"] for line in prefect.lines] == ["git said ***", "key ato_***", "nothing"]
