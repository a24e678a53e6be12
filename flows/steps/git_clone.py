"""`git_clone`: brings one state of a repository into the task's workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from flows.clients.git import GitClient
from flows.steps import fields as checked
from flows.steps.base import StepContext


class GitClone:
    """Clones; outputs the folder and the commit."""

    type: ClassVar[str] = "git_clone"

    async def run(self, fields: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        """Fields: repo, branch (branch, tag or commit)."""
        client = GitClient(
            context.settings,
            context.workspace,
            record=lambda peak, cpu: context.usage.add_process(peak_rss_bytes=peak, cpu_seconds=cpu),
        )
        path, commit = await client.clone(checked.text(fields, "repo"), checked.optional_text(fields, "branch"))
        context.log.info("repository_cloned", extra={"task_id": context.task_id, "commit": commit})
        return {"path": str(path), "commit": commit}
