"""What leaves an installation open to others, and its mend: refused at the start, and named by `orchestra doctor`."""

from __future__ import annotations

import ipaddress
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ai_task_orchestra.api_keys import looks_like_key
from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.settings import Settings

#: Where it may be tried by others, a secret of somebody's own choice has at least this many characters.
SHORTEST_SECRET: Final = 16
_FEWEST_DIFFERENT: Final = 6
#: What stands in documents, as words in which letters and digits alone count.
_SAMPLES: Final = (
    "yourapikey",
    "anapikeyofyourchoice",
    "changeme",
    "changethis",
    "replaceme",
    "example",
    "placeholder",
)

#: File in the data folder in which `orchestra up` says where its database is.
DATABASE_URL_FILE: Final = "database-url"


def is_loopback(host: str) -> bool:
    """Whether listening on `host` is heard on this machine only. A name other than `localhost` counts as not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def weakness(secret: str) -> str | None:
    """Why others could guess a secret that somebody chose, in words after its name; None if they could not."""
    bare = "".join(letter for letter in secret.lower() if letter.isalnum())
    if any(sample in bare for sample in _SAMPLES):
        return "is a sample from a document"
    if len(secret) < SHORTEST_SECRET:
        return f"has {len(secret)} characters, fewer than {SHORTEST_SECRET}"
    if len(set(secret)) < _FEWEST_DIFFERENT:
        return f"has fewer than {_FEWEST_DIFFERENT} different characters"
    return None


def readable_by_others(path: Path) -> str | None:
    """Who besides its owner may read or change a file, and its mend; None if nobody may, or there is no such file."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None
    if not mode & 0o077:
        return None
    return (
        f"{path} is open to other accounts (mode {mode:04o}): run `chmod 600 {path}`; "
        "if one of them may have read it, delete it instead, and a new one is made"
    )


def secret_files(settings: Settings) -> tuple[Path, ...]:
    """The files of a data folder that hold a key or a password."""
    home = settings.home
    return settings.api_key_file, settings.prefect_auth_file, home / DATABASE_URL_FILE, home / "postgres-password"


def chosen_secrets(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """(name, host it is tried at, secret) of the keys and passwords that the operator may have chosen."""
    if settings.api_key and settings.api_key.strip():
        yield "ORCHESTRA_API_KEY", settings.host, settings.api_key
    if (key := _text(settings.api_key_file)) and not looks_like_key(key):
        yield f"the key in {settings.api_key_file}", settings.host, key
    if settings.prefect_auth_string and settings.prefect_api_url is None:
        yield "the password in PREFECT_API_AUTH_STRING", settings.prefect_host, _password(settings.prefect_auth_string)


def dangers(settings: Settings) -> Iterator[str]:
    """Why nothing should be started with these settings, each with its mend."""
    for path in secret_files(settings):
        if problem := readable_by_others(path):
            yield problem
    for name, host, secret in chosen_secrets(settings):
        if not is_loopback(host) and (why := weakness(secret)):
            yield (
                f"{name} {why}, and {host} can be reached by others: choose a long random one "
                '(python3 -c "import secrets; print(secrets.token_urlsafe(24))")'
            )


def refuse_dangers(settings: Settings) -> None:
    """Raise ConfigurationError if something must not be started with these settings."""
    if found := list(dangers(settings)):
        raise ConfigurationError("\n".join(found))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _password(auth_string: str) -> str:
    return auth_string.partition(":")[2]
