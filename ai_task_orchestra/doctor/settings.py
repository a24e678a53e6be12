"""Settings: keys and passwords that can be guessed, doors that were opened on purpose."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from ai_task_orchestra.doctor.findings import Finding, note, ok, or_ok, problem
from ai_task_orchestra.exposure import chosen_secrets, is_loopback, weakness
from ai_task_orchestra.settings import Settings

_RANDOM: Final = 'a long random one: python3 -c "import secrets; print(secrets.token_urlsafe(24))"'
#: Ways to reach a repository that run a program, or read this machine's files, at the wish of whoever names it.
_PROGRAMS: Final = frozenset({"ext", "fd"})
_USUAL: Final = frozenset({"https", "ssh"})


def check_settings(settings: Settings) -> list[Finding]:
    """What the settings say, without asking anybody."""
    return [
        *or_ok("keys", _keys(settings), "no key and no password that was chosen can be guessed"),
        *_listening(settings),
        *_git(settings),
        *_outbound(settings),
        *_account(),
    ]


def _keys(settings: Settings) -> Iterator[Finding]:
    for name, host, secret in chosen_secrets(settings):
        if why := weakness(secret):
            says = f"{name} {why}"
            yield (
                note("keys", f"{says}; only this machine can try it", _RANDOM)
                if is_loopback(host)
                else problem("keys", f"{says}, and others can try it at {host}", _RANDOM)
            )
    url = urlsplit(settings.database_url or "")
    if url.hostname and not is_loopback(url.hostname) and (why := weakness(url.password or "")):
        says = f"the password in ORCHESTRA_DATABASE_URL {why}, and {url.hostname} is another machine"
        yield problem("keys", says, _RANDOM)


def _listening(settings: Settings) -> Iterator[Finding]:
    for name, host, variable in (
        ("the API", settings.host, "ORCHESTRA_HOST"),
        ("Prefect", settings.prefect_host, "ORCHESTRA_PREFECT_HOST"),
    ):
        if name == "Prefect" and settings.prefect_api_url is not None:
            continue
        if is_loopback(host):
            yield ok("binds", f"{name} listens on this machine only")
        else:
            yield note(
                "binds",
                f"{name} listens on {host}: whoever reaches it needs a key, and keys and answers travel in the clear",
                f"put a proxy with TLS in front of it, or unset {variable}",
            )
    if settings.docs and not is_loopback(settings.host):
        yield note("binds", "the page that documents the API is shown to everybody", "unset ORCHESTRA_DOCS")


def _git(settings: Settings) -> Iterator[Finding]:
    allowed = set(settings.git_protocols)
    if found := sorted(allowed & _PROGRAMS):
        says = f"ORCHESTRA_GIT_PROTOCOLS allows {', '.join(found)}: whoever names a repository runs a program of theirs"
        yield problem("git protocols", says, "take it out: https,ssh is what is needed")
    elif unusual := sorted(allowed - _USUAL):
        yield note("git protocols", f"repositories may also be reached by {', '.join(unusual)}", "https,ssh is usual")


def _outbound(settings: Settings) -> Iterator[Finding]:
    if settings.http_allow_private:
        says = "the step http_request may reach this machine and its neighbours, Prefect and the model server included"
        yield note("outbound", says, "unset ORCHESTRA_HTTP_ALLOW_PRIVATE")


def _account() -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield note("account", "we run as root", "an account of its own needs no rights on this machine")
