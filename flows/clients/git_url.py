"""Which repositories may be cloned, and what a branch, tag or commit may be called.

The address comes from people and ends up as an argument of git, whose own reading of it is generous: helpers
(`ext::sh -c ...`), options (`--upload-pack=...`), local paths, credentials and line breaks are refused here, and git
is told the same again through its environment.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from ai_task_orchestra.errors import StepInputError

_MAX_LENGTH: Final = 2048
_CONTROL: Final = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff]")
_ESCAPED_CONTROL: Final = re.compile(r"%(?:[01][0-9a-f]|7f)", re.IGNORECASE)
_HELPER: Final = re.compile(r"[A-Za-z0-9+.-]*::")
_SCP_LIKE: Final = re.compile(
    r"(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>[^-:].*)"
)
_SSH_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_REFUSED_IN_REF: Final = re.compile(r"[\x00-\x20\x7f~^:?*\[\\\ud800-\udfff]|\.\.|@\{|//")
_COMMIT: Final = re.compile(r"[0-9a-f]{7,64}", re.IGNORECASE)
_FULL_COMMIT: Final = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})", re.IGNORECASE)


@dataclass(frozen=True)
class Repository:
    """A checked address. `local` is the folder of a `file` repository."""

    url: str
    protocol: str
    local: str | None = None


def check_url(text: str, protocols: Collection[str]) -> Repository:
    """The repository that `text` names.

    Args:
        text: `scheme://...`, `user@host:path` (ssh) or, where `file` is allowed, an absolute path.
        protocols: the allowed ones.

    Raises:
        StepInputError: it can't be cloned; the message does not repeat the address.
    """
    if not text or len(text) > _MAX_LENGTH:
        raise _refused(f"it must have 1 to {_MAX_LENGTH} characters")
    if _CONTROL.search(text) or _ESCAPED_CONTROL.search(text):
        raise _refused("it holds white space or control characters")
    if text.startswith("-") or _HELPER.match(text):
        raise _refused("it is no URL")
    if "://" in text:
        repository = _from_url(text)
    elif text.startswith("/"):
        repository = Repository(f"file://{quote(text)}", "file", text)
    elif _SCP_LIKE.fullmatch(text):
        repository = Repository(text, "ssh")
    else:
        raise _refused("it must be scheme://host/path or user@host:path")
    if repository.protocol not in protocols:
        raise _refused(f"protocol {repository.protocol} is not allowed here (ORCHESTRA_GIT_PROTOCOLS)")
    if repository.local is not None and ".." in PurePosixPath(repository.local).parts:
        raise _refused('its path holds ".."')
    return repository


def _from_url(text: str) -> Repository:
    try:
        url = urlsplit(text)
        _ = url.port  # raises unless it is a number
    except ValueError as exc:
        raise _refused("it is no URL") from exc
    if url.fragment or "#" in text:
        raise _refused("it holds a fragment (#)")
    if url.scheme == "file":
        if url.netloc not in ("", "localhost") or not url.path.startswith("/") or url.query:
            raise _refused("a file URL is file:///path")
        return Repository(text, "file", unquote(url.path))
    _check_host(url)
    return Repository(url.scheme + text[len(url.scheme) :], url.scheme)


def _check_host(url: SplitResult) -> None:
    user, at, host = url.netloc.rpartition("@")
    if not url.hostname or host.startswith("-"):
        raise _refused("it has no host")
    if at and (url.scheme != "ssh" or not _SSH_USER.fullmatch(user)):
        raise _refused("credentials in the address are not accepted")


def check_ref(text: str) -> str:
    """A branch, tag or commit by git's own rules for names, without git's expressions for finding others.

    Raises:
        StepInputError: it is none.
    """
    parts = text.split("/")
    if (
        not text
        or len(text) > 255
        or _REFUSED_IN_REF.search(text)
        or text.startswith(("-", "/"))
        or text.endswith(("/", "."))
        or text in ("@", "HEAD", "FETCH_HEAD")
        or any(part.startswith(".") or part.endswith(".lock") for part in parts)
    ):
        raise StepInputError("branch: not the name of a branch, tag or commit")
    return text


def may_be_commit(ref: str) -> bool:
    """Whether it could be a commit id, shortened or not."""
    return _COMMIT.fullmatch(ref) is not None


def is_full_commit(ref: str) -> bool:
    """Whether it is a whole commit id, which a server may hand out directly."""
    return _FULL_COMMIT.fullmatch(ref) is not None


def _refused(reason: str) -> StepInputError:
    return StepInputError(f"repo: the address can't be used: {reason}")
