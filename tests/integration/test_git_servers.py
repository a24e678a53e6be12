"""Cloning from a server over HTTP: confined, at the addresses that were checked, as whom the operator said."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.errors import GitError, StepInputError
from flows.clients.git import GitClient
from flows.steps.base import StepContext
from flows.steps.run_command import RunCommand
from tests.support import servers
from tests.support.git_server import git_server
from tests.support.steps import commit, git, repository, step_context
from tests.support.tls import certificate

PASSWORD = "canary-5f0e71c2/+ä"


@pytest.fixture
def folder() -> Iterator[Path]:
    with servers.open_folder() as path:
        yield path


@pytest.fixture
def source(folder: Path) -> Path:
    repository(folder / "source", {"a.txt": "first"})
    return folder / "source"


def context_with(folder: Path, **settings: Any) -> StepContext:
    settings = {"git_protocols": ("https", "http"), "git_private_hosts": "127.0.0.1"} | settings
    return step_context(folder / "home", **settings)


async def clone(context: StepContext, url: str, ref: str | None = None) -> tuple[Path, str]:
    client = GitClient(context.settings, context.workspace, record=lambda *_: None)
    return await client.clone(url, ref)


@pytest.fixture
def resolving(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every name of `.example` is this machine; the names that were asked for."""
    asked: list[str] = []
    real = asyncio.BaseEventLoop.getaddrinfo

    async def lookup(loop: asyncio.BaseEventLoop, host: str, port: int, **options: Any) -> Any:
        asked.append(host)
        return await real(loop, "127.0.0.1" if host.endswith(".example") else host, port, **options)

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
    return asked


async def test_branches_and_commits_come_from_a_server(folder: Path, source: Path) -> None:
    old = git(source, "rev-parse", "HEAD")
    new = commit(source, {"a.txt": "second"})
    context = context_with(folder)
    with git_server(source) as server:
        for ref, expected in ((None, new), ("main", new), (old, old), (old[:9], old)):
            path, found = await clone(context, server.url(), ref)
            assert found == expected
    given = await RunCommand().run({"command": ["sh", "-c", f"cat {path}/a.txt; echo mine >> {path}/a.txt"]}, context)

    assert given["output"] == "first"  # the programs of the task may read and change what was cloned


async def test_git_runs_confined(folder: Path, source: Path) -> None:
    with git_server(source) as server:
        path, _ = await clone(context_with(folder), server.url())

    assert (path.stat().st_uid != 0) or os.getuid() != 0
    assert (path / "a.txt").stat().st_uid == path.stat().st_uid


async def test_git_connects_to_the_addresses_that_were_checked(
    folder: Path, source: Path, resolving: list[str]
) -> None:
    context = context_with(folder, git_private_hosts="Name.example")
    with git_server(source) as server:
        await clone(context, server.url("name.example"))

    assert resolving == ["name.example"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]", "name.example"])
async def test_private_addresses_need_the_operators_word(
    folder: Path, source: Path, resolving: list[str], host: str
) -> None:
    context = context_with(folder, git_private_hosts="other.example")
    with git_server(source) as server:
        with pytest.raises(StepInputError, match="ORCHESTRA_GIT_PRIVATE_HOSTS"):
            await clone(context, server.url(host))
        assert server.asked == []


async def test_a_repository_that_is_too_large_is_given_up(folder: Path, source: Path) -> None:
    (source / "big").write_bytes(os.urandom(8_000_000))
    commit(source, {})
    context = context_with(folder, git_max_bytes=5_000_000)
    with git_server(source) as server, pytest.raises(GitError, match="too large") as caught:
        await clone(context, server.url())

    assert not caught.value.retryable
    assert list(context.workspace.glob("repository-*")) == []


@pytest.fixture
def tls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The certificate of `name.example`, which our side trusts."""
    path = certificate(folder, "name.example")
    path.chmod(0o644)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return path


def credentials(context: StepContext, text: str, mode: int = 0o600) -> None:
    path = context.settings.git_credentials_file
    path.write_text(text)
    path.chmod(mode)


async def test_the_operators_credentials_open_his_server_only(
    folder: Path, source: Path, tls: Path, resolving: list[str]
) -> None:
    context = context_with(folder, git_private_hosts=())
    credentials(
        context, f"machine name.example login deploy password {PASSWORD}\ndefault login x password {PASSWORD}\n"
    )
    with git_server(source, login=("deploy", PASSWORD), certificate=tls) as server:
        _, found = await clone(context, server.url("name.example"))
    assert found == git(source, "rev-parse", "HEAD")
    assert server.asked[-1][1] == server.expected
    with git_server(source, login=("deploy", PASSWORD)) as plain:
        with pytest.raises(StepInputError):  # an entry for a host is for https alone
            await clone(context, plain.url("name.example"))
        with pytest.raises(GitError):
            await clone(context_with(folder, git_private_hosts="*"), plain.url("other.example"))
        assert [authorization for _, authorization in plain.asked if authorization] == []

    everything = [path.read_bytes() for path in context.workspace.rglob("*") if path.is_file()]
    assert not any(b"canary" in content for content in everything)


async def test_a_refused_password_is_not_shown(
    folder: Path, source: Path, tls: Path, resolving: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    context = context_with(folder)
    credentials(context, f"machine name.example login deploy password {PASSWORD}")
    with git_server(source, login=("deploy", "another"), certificate=tls) as server, pytest.raises(GitError) as caught:
        await clone(context, server.url("name.example"))

    assert "canary" not in caught.value.message + caplog.text
    assert not caught.value.retryable


@pytest.mark.parametrize(("text", "mode"), [("machine", 0o600), ("machine name.example login a password b", 0o640)])
async def test_credentials_that_can_not_be_used_are_named(
    folder: Path, source: Path, tls: Path, resolving: list[str], text: str, mode: int
) -> None:
    context = context_with(folder)
    credentials(context, text, mode)
    with git_server(source, certificate=tls) as server, pytest.raises(GitError, match="git credentials"):
        await clone(context, server.url("name.example"))
