"""Cloning real repositories, friendly and hostile ones."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.errors import GitError, StepInputError, StepTimeoutError
from flows.clients.git import GitClient
from flows.steps.base import StepContext
from flows.steps.git_clone import GitClone
from tests.support.steps import commit, git, repository, step_context
from tests.support.waiting import wait_until


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    protocols = ("https", "ssh", "file", "http")
    return step_context(tmp_path / "home", git_protocols=protocols, git_private_hosts=("127.0.0.1",))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    repository(folder, {"a.txt": "first"})
    return folder


async def clone(context: StepContext, repo: str, **fields: Any) -> tuple[Path, str]:
    outputs = await GitClone().run({"repo": repo, **fields}, context)
    assert outputs.keys() == {"path", "commit"}
    return Path(outputs["path"]), outputs["commit"]


def clones(context: StepContext) -> list[Path]:
    return [path for path in context.workspace.iterdir() if path.name.startswith("repository-")]


async def test_the_default_branch_is_cloned_without_its_history(context: StepContext, source: Path) -> None:
    head = commit(source, {"a.txt": "second"})
    path, found = await clone(context, f"file://{source}")

    assert found == head
    assert (path / "a.txt").read_text() == "second"
    assert git(path, "rev-list", "--count", "HEAD") == "1"
    assert path.parent == context.workspace
    assert context.usage.peak_rss_bytes > 0


async def test_an_absolute_path_is_a_local_repository(context: StepContext, source: Path) -> None:
    assert (await clone(context, str(source)))[1] == git(source, "rev-parse", "HEAD")


async def test_a_branch_or_a_tag_is_found_by_its_name(context: StepContext, source: Path) -> None:
    git(source, "tag", "v1")
    git(source, "checkout", "-q", "-b", "feature/x")
    branch = commit(source, {"a.txt": "branch"})
    git(source, "tag", "-a", "v2", "-m", "annotated")
    git(source, "checkout", "-q", "main")

    assert (await clone(context, f"file://{source}", branch="feature/x"))[1] == branch
    assert (await clone(context, f"file://{source}", branch="v2"))[1] == branch
    path, _ = await clone(context, f"file://{source}", branch="v1")
    assert (path / "a.txt").read_text() == "first"


async def test_a_commit_is_found_by_its_whole_or_shortened_id(context: StepContext, source: Path) -> None:
    old = git(source, "rev-parse", "HEAD")
    commit(source, {"a.txt": "second"})
    for ref in (old, old[:8], old.upper()):
        path, found = await clone(context, f"file://{source}", branch=ref)
        assert found == old
        assert (path / "a.txt").read_text() == "first"


async def test_a_commit_on_another_branch_or_under_a_tag_alone_is_found(context: StepContext, source: Path) -> None:
    git(source, "checkout", "-q", "-b", "other")
    below = commit(source, {"b.txt": "b"})
    commit(source, {"b.txt": "c"})
    git(source, "tag", "kept")
    git(source, "checkout", "-q", "main")
    git(source, "branch", "-q", "-D", "other")

    assert (await clone(context, f"file://{source}", branch=below[:10]))[1] == below


async def test_what_does_not_exist_is_said_and_nothing_is_left(context: StepContext, source: Path) -> None:
    for ref in ("nowhere", "0123456789", "0" * 39 + "1"):
        with pytest.raises(GitError, match="no such") as caught:
            await clone(context, f"file://{source}", branch=ref)
        assert not caught.value.retryable
    with pytest.raises(GitError, match=r"does not appear to be a git repository|not found|does not exist"):
        await clone(context, "file:///no/such/repository")

    assert clones(context) == []


async def test_a_repository_without_a_commit_is_an_error(context: StepContext, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    with pytest.raises(GitError, match="no commit"):
        await clone(context, f"file://{empty}")

    assert clones(context) == []


async def test_local_repositories_need_the_operators_permission(tmp_path: Path, source: Path) -> None:
    context = step_context(tmp_path / "home")
    for url in (f"file://{source}", str(source)):
        with pytest.raises(StepInputError, match="ORCHESTRA_GIT_PROTOCOLS"):
            await clone(context, url)


def give_away(folder: Path) -> None:
    """Make it all belong to another account."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
async def test_a_repository_of_another_account_can_be_cloned(context: StepContext, source: Path) -> None:
    bare = source.with_name("bare.git")
    shutil.copytree(source / ".git", bare)
    git(bare, "config", "core.bare", "true")
    for folder in (source, bare):
        give_away(folder)
    link = source.with_name("link")
    link.symlink_to(source)

    for url in (f"file://{source}", f"file://{bare}", f"file://{link}", f"file://{source}/.git"):
        assert (await clone(context, url))[1] == git(source, "rev-parse", "HEAD")


async def test_nothing_that_a_repository_brings_is_executed(
    context: StepContext, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, home, hit = tmp_path / "template", tmp_path / "someone", tmp_path / "hit"
    for folder in (template / "hooks", home):
        folder.mkdir(parents=True)
    hook = f"#!/bin/sh\ntouch {hit}\n"
    for path in (template / "hooks" / "post-checkout", home / "program"):
        path.write_text(hook)
        path.chmod(0o755)
    module = f"[submodule 'x']\n\tpath = x\n\turl = file://{source}\n\tupdate = !touch {hit}\n"
    commit(
        source, {".gitattributes": "*.bin filter=lfs\n*.txt filter=evil\n", "a.bin": "pointer", ".gitmodules": module}
    )
    (home / ".gitconfig").write_text(
        f"[init]\ntemplateDir = {template}\n[core]\nfsmonitor = {home}/program\n"
        f'[filter "lfs"]\nsmudge = {home}/program\nrequired = true\n[filter "evil"]\nsmudge = {home}/program\n'
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(template))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(home / "program"))
    path, _ = await clone(context, f"file://{source}")

    assert not hit.exists()
    assert (path / "a.bin").read_text() == "pointer"
    assert [file.name for file in (path / ".git" / "hooks").glob("*")] == []


async def test_symbolic_links_become_plain_files(context: StepContext, source: Path) -> None:
    (source / "link").symlink_to("/etc/passwd")
    commit(source, {})
    path, _ = await clone(context, f"file://{source}")

    assert not (path / "link").is_symlink()
    assert (path / "link").read_text() == "/etc/passwd"


@pytest.fixture
async def web(tmp_path: Path) -> AsyncIterator[Web]:
    async with Web() as running:
        yield running


class Web:
    """A server on loopback that gives every request the same answer, or none."""

    def __init__(self) -> None:
        self.answer: bytes | None = b""
        self.requests: list[bytes] = []

    async def __aenter__(self) -> Web:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/x.git"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        if self.answer is None:
            await reader.read()  # until the other side gives up
        else:
            writer.write(self.answer)
            await writer.drain()
        writer.close()


async def test_a_redirect_is_not_followed(context: StepContext, web: Web) -> None:
    web.answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/other\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(GitError, match=r"redirect|302") as caught:
        await clone(context, web.url)

    assert not caught.value.retryable


@pytest.mark.parametrize(("status", "retryable"), [("503 Busy", True), ("404 None", False), ("403 No", False)])
async def test_only_trouble_that_passes_is_worth_a_retry(
    context: StepContext, web: Web, status: str, retryable: bool
) -> None:
    web.answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    with pytest.raises(GitError) as caught:
        await clone(context, web.url)

    assert caught.value.retryable is retryable
    assert clones(context) == []


async def test_a_server_that_asks_for_a_password_gets_none_and_nobody_is_asked(context: StepContext, web: Web) -> None:
    web.answer = b'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'
    with pytest.raises(GitError) as caught:
        await clone(context, web.url)

    assert not caught.value.retryable
    assert not any(b"authorization" in request.lower() for request in web.requests)


async def test_an_unreachable_server_is_worth_a_retry(context: StepContext) -> None:
    with pytest.raises(GitError) as caught:
        await clone(context, "http://127.0.0.1:1/x")

    assert caught.value.retryable


async def test_a_server_that_never_answers_ends_by_time_out(tmp_path: Path, web: Web) -> None:
    context = step_context(tmp_path / "home", git_protocols=("http",), git_private_hosts="*", git_timeout_seconds=1)
    web.answer = None
    began = time.monotonic()
    with pytest.raises(StepTimeoutError, match="git took longer than 1 s"):
        await clone(context, web.url)

    assert time.monotonic() - began < 5
    assert clones(context) == []


async def test_a_cancelled_clone_leaves_nothing(context: StepContext, web: Web) -> None:
    web.answer = None
    running = asyncio.ensure_future(clone(context, web.url))
    await wait_until(lambda: web.requests, description="git has asked")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert clones(context) == []


async def test_a_worker_without_git_says_so(
    context: StepContext, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitError, match="not installed"):
        await GitClient(context.settings, context.workspace, record=lambda *_: None).clone(f"file://{source}")
