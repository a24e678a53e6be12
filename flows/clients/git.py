"""Cloning with git: our own argument lists and configuration, limits of time and size, nothing executed on the way.

From servers it runs as confined as any program of the task. `ssh` and `file` work with what is the operator's own,
keys and folders, so there it runs under the worker's account. GitPython only reads what was cloned.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ai_task_orchestra.errors import GitError, LimitError, StepTimeoutError
from ai_task_orchestra.redaction import without_secrets
from ai_task_orchestra.removal import remove_tree
from ai_task_orchestra.settings import Settings
from flows.clients.confinement import Confinement, confined, unconfined
from flows.clients.git_access import Access, access_to
from flows.clients.git_url import Repository, check_ref, check_url, is_full_commit, may_be_commit
from flows.clients.processes import ProcessEnd, run_process
from flows.text import last_line, without_credentials

_MAX_OUTPUT_BYTES: Final = 64 * 1024
# What the machine's operator set up for reaching servers; only git gets to see it.
_PASSED_ON: Final = (
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "ssl_cert_file",
    "ssl_cert_dir",
    "ssh_auth_sock",
)
_REMOTE: Final = ("http", "https")
_CONFIGURATION: Final = """\
[core]
	hooksPath = /dev/null
	fsmonitor = false
	symlinks = false
	protectHFS = true
	protectNTFS = true
[credential]
	helper =
[http]
	followRedirects = false
	lowSpeedLimit = 1000
	lowSpeedTime = 30
[protocol]
	allow = never
[fetch]
	recurseSubmodules = false
[submodule]
	recurse = false
[safe]
	bareRepository = explicit
[transfer]
	credentialsInUrl = die
[gc]
	auto = 0
[advice]
	detachedHead = false
"""
_CLONE_OPTIONS: Final = ("--quiet", "--template=", "--no-recurse-submodules", "--config=core.symlinks=false")
_SHALLOW: Final = ("--depth=1", "--single-branch", "--no-tags")
_NETWORK_TROUBLE: Final = re.compile(
    "|".join(
        (
            "could not resolve host|name resolution|couldn't connect|failed to connect|empty reply|timed? ?out",
            "connection (?:refused|reset|closed)|network is unreachable|no route to host|operation too slow",
            "early eof|rpc failed|hung up unexpectedly|unexpected disconnect|(?:recv|send) failure",
            r"returned error: (?:429|5\d\d)|tls connection was non-properly terminated",
        )
    ),
    re.IGNORECASE,
)
_EMPTY_WORDS: Final = (
    "Please make sure you have the correct",
    "and the repository exists",
    "fatal: Could not read from remote",
)
_NO_SUCH_REF: Final = re.compile(r"remote branch .* not found|couldn't find remote ref", re.IGNORECASE)


class GitClient:
    """Clones repositories into the workspace of a task."""

    def __init__(self, settings: Settings, workspace: Path, *, record: Callable[[int, float], None]) -> None:
        """`record` is told what each git process used: peak resident bytes, processor seconds."""
        self._settings = settings
        self._workspace = workspace
        self._record = record

    async def clone(self, url: str, ref: str | None = None) -> tuple[Path, str]:
        """Clone one state of a repository: no history, no other branches, no submodules, symbolic links as files.

        Args:
            url: as `git_url.check_url` accepts it.
            ref: branch, tag or (shortened) commit id; the repository's own default if not given.

        Returns:
            the folder, and the id of the commit that is checked out.

        Raises:
            StepInputError: address or ref can't be used.
            GitError: git failed; retryable where the network was to blame.
            StepTimeoutError: it took longer than `git_timeout_seconds`.
        """
        repository = check_url(url, self._settings.git_protocols)
        if ref is not None:
            check_ref(ref)
        target = Path(tempfile.mkdtemp(prefix="repository-", dir=self._workspace))
        try:
            await _Clone(self._settings, self._workspace, repository, target, self._record).run(ref)
            return target, await asyncio.to_thread(_commit, target)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(remove_tree, target))
            raise


class _Clone:
    """One clone, within one time limit over all its git commands."""

    def __init__(
        self,
        settings: Settings,
        workspace: Path,
        repository: Repository,
        target: Path,
        record: Callable[[int, float], None],
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._target = target
        self._record = record
        self._programs = confined(
            settings, workspace, network=True, readable=_certificates(), max_bytes=settings.git_max_bytes
        )
        self._remote = repository.protocol in _REMOTE
        limits_only = unconfined(settings, workspace, max_bytes=settings.git_max_bytes)
        self._confinement = self._programs if self._remote else limits_only
        self._env: dict[str, str] = {}
        self._deadline = time.monotonic() + settings.git_timeout_seconds

    async def run(self, ref: str | None) -> None:
        """Get the commit into the target folder, which then belongs to the account of the task's programs."""
        access = await access_to(self._repository.url, self._settings) if self._remote else Access()
        self._env = _environment(self._confinement, self._repository, access)
        self._confinement.hand_over(self._target)
        await self._fetch(ref)
        if self._programs.account != self._confinement.account:
            await asyncio.to_thread(_hand_over_all, self._programs, self._target)

    async def _fetch(self, ref: str | None) -> None:
        """Cheapest way first."""
        if ref is None or not is_full_commit(ref):
            if await self._shallow(ref):
                return
            if ref is None or not may_be_commit(ref):
                raise GitError("there is no such branch or tag, and it is no commit id either")
        elif await self._single_commit(ref):
            return
        await self._everything(ref)

    async def _shallow(self, ref: str | None) -> bool:
        """One branch or tag, one commit deep; False: there is no such name."""
        branch = [f"--branch={ref}"] if ref is not None else []
        end = await self._git("clone", *_CLONE_OPTIONS, *_SHALLOW, *branch, *self._positionals)
        if end.exit_code and ref is not None and _NO_SUCH_REF.search(end.stderr):
            await asyncio.to_thread(self._start_over)
            return False
        _check(end)
        return True

    async def _single_commit(self, commit: str) -> bool:
        """A commit by its whole id; False where the server hands out branches and tags only."""
        _check(await self._git("init", "--quiet", "--template=", "--", str(self._target)))
        end = await self._git(
            "fetch", "--quiet", "--depth=1", "--no-tags", "--", self._repository.url, commit, inside=True
        )
        if end.exit_code:
            if _NETWORK_TROUBLE.search(end.stderr):
                _check(end)
            await asyncio.to_thread(self._start_over)
            return False
        _check(await self._git("checkout", "--quiet", "--detach", "FETCH_HEAD", inside=True))
        return True

    async def _everything(self, commit: str) -> None:
        """All branches and tags with their history; then the commit is looked for in it."""
        _check(await self._git("clone", *_CLONE_OPTIONS, "--no-checkout", *self._positionals))
        end = await self._git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", inside=True)
        if end.exit_code:
            raise GitError("there is no such branch, tag or commit")
        _check(await self._git("checkout", "--quiet", "--detach", end.stdout.strip(), inside=True))

    def _start_over(self) -> None:
        """git removes what it could not finish; what it left is in the way of the next attempt."""
        remove_tree(self._target)
        self._target.mkdir(mode=0o700)
        self._confinement.hand_over(self._target)

    @property
    def _positionals(self) -> tuple[str, ...]:
        return "--", self._repository.url, str(self._target)

    async def _git(self, *arguments: str, inside: bool = False) -> ProcessEnd:
        """One git command, in the clone if `inside`."""
        if shutil.which("git", path=self._env["PATH"]) is None:
            raise GitError("git is not installed on this worker")
        left = self._deadline - time.monotonic()
        try:
            return await run_process(
                ("git", *arguments),
                cwd=self._target if inside else Path("/"),
                env=self._env,
                max_output_bytes=_MAX_OUTPUT_BYTES,
                confinement=self._confinement,
                timeout_seconds=max(left, 0.001),
                record=self._record,
            )
        except LimitError as exc:
            if exc.limit not in ("disk", "files"):
                raise
            raise GitError("the repository is too large (ORCHESTRA_GIT_MAX_BYTES, ORCHESTRA_WORKSPACE_FILES)") from exc
        except StepTimeoutError as exc:
            limit = self._settings.git_timeout_seconds
            raise StepTimeoutError(f"git took longer than {limit:g} s", retryable=True) from exc


def _environment(confinement: Confinement, repository: Repository, access: Access) -> dict[str, str]:
    """git's environment: no configuration but ours, no questions, no protocol but the one asked for."""
    configuration = _CONFIGURATION + f'[protocol "{repository.protocol}"]\n\tallow = always\n' + access.configuration
    if repository.local is not None:
        configuration += _trusted(repository.local)
    if certificates := os.environ.get("SSL_CERT_FILE"):  # not every build of git reads it itself
        configuration += f"[http]\n\tsslCAInfo = {_quoted(certificates)}\n"
    env = {name: value for name, value in os.environ.items() if name.lower() in _PASSED_ON}
    env |= confinement.environment()
    home = Path(tempfile.mkdtemp(prefix=".git-", dir=confinement.workspace))
    (home / "config").write_text(configuration)
    for path in (home, home / "config"):
        confinement.hand_over(path)
    return (
        env
        | dict(access.environment)
        | {
            "HOME": str(home),
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(home / "config"),
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_ALLOW_PROTOCOL": repository.protocol,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=10",
            "GIT_SSH_VARIANT": "ssh",
        }
    )


def _certificates() -> list[str]:
    """Where the operator keeps the certificates that servers are to have."""
    return [path for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if (path := os.environ.get(name))]


def _hand_over_all(programs: Confinement, folder: Path) -> None:
    """Give a clone to the programs' account; it has no symbolic links, and nothing runs in it yet."""
    for top, _, files in os.walk(folder):
        for path in (top, *(os.path.join(top, name) for name in files)):  # noqa: PTH118 - paths may be very many
            programs.hand_over(Path(path))


def _trusted(folder: str) -> str:
    """git refuses a local repository of another account; the operator allowed `file`, so this one is meant."""
    real = os.path.realpath(folder)
    names = {each + end for each in (folder.rstrip("/"), real) for end in ("", "/.git", ".git")}
    return "[safe]\n" + "".join(f"\tdirectory = {_quoted(name)}\n" for name in sorted(names))


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _check(end: ProcessEnd) -> None:
    """Raise what git says last, if it failed."""
    if end.exit_code == 0:
        return
    line = _reason(end.stderr) or (f"exit code {end.exit_code}" if end.exit_code > 0 else f"signal {-end.exit_code}")
    raise GitError(f"git: {line}", retryable=_NETWORK_TROUBLE.search(end.stderr) is not None)


def _reason(stderr: str) -> str:
    """The last line that tells something: after ssh's own words git adds what says nothing."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(_EMPTY_WORDS)] or lines
    line = last_line("\n".join(telling))
    return without_secrets(without_credentials(line)).removeprefix("fatal: ").removeprefix("error: ")


def _commit(folder: Path) -> str:
    """The id of the commit that is checked out, read without running git."""
    import git  # late: it looks for the git program when it is imported

    try:
        with git.Repo(folder) as repository:
            return str(git.HEAD.dereference_recursive(repository, "HEAD"))
    except (ValueError, git.GitError) as exc:
        raise GitError("the repository has no commit") from exc
