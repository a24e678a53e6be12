"""The data directory: made, locked, and the secrets kept in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ai_task_orchestra.api_keys import generate_key
from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.exposure import DATABASE_URL_FILE, readable_by_others
from ai_task_orchestra.settings import Settings

AUTH_USER = "orchestra"


@dataclass(frozen=True)
class LockedHome:
    """The data directory while it is ours. `after_a_crash`: whoever had it before did not end in order."""

    path: Path
    after_a_crash: bool

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def database_url_file(self) -> Path:
        """Where the embedded database is found while it runs, for `orchestra keys`; mode 0600."""
        return self.path / DATABASE_URL_FILE


@contextlib.contextmanager
def locked_home(settings: Settings) -> Iterator[LockedHome]:
    """Make the data directory and hold it: one `orchestra up` per directory.

    A new one may be entered by others (0711), because PostgreSQL can run under another account; what is secret in it
    is readable by its owner only. One that exists keeps its permissions.

    Raises:
        ConfigurationError: another one holds it, or it can't be used.
    """
    home = settings.home
    try:
        if not home.exists():
            home.mkdir(parents=True)
            home.chmod(0o711)
        for name, mode in (("logs", 0o700), ("prefect", 0o700), ("inputs", 0o755), ("outputs", 0o755)):
            (home / name).mkdir(mode=mode, exist_ok=True)
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise ConfigurationError(
            f"the data folder {home} can't be used: {exc.strerror}; make it writable or set ORCHESTRA_HOME"
        ) from exc
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().strip() or "unknown"
            raise ConfigurationError(
                f"`orchestra up` is already running on {home} (process {holder}); "
                "stop it, or choose another folder with ORCHESTRA_HOME"
            ) from None
        crashed = bool(file.read().strip())
        _overwrite(file.fileno(), str(os.getpid()))
        try:
            yield LockedHome(home, crashed)
        finally:
            _overwrite(file.fileno(), "")


def _overwrite(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def write_private(path: Path, text: str) -> None:
    """Put `text` into a file that only its owner may read, in one step."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    scratch.replace(path)


def ensure_api_key(settings: Settings) -> Path:
    """The file with the generated admin key, made at the first start."""
    _ensure_secret(settings.api_key_file, generate_key)
    return settings.api_key_file


def read_api_key(settings: Settings) -> str:
    """The key that our own commands send: `ORCHESTRA_API_KEY`, else the one in the key file.

    Raises:
        ConfigurationError: there is neither.
    """
    if settings.api_key:
        return settings.api_key
    try:
        if key := settings.api_key_file.read_text().strip():
            return key
    except OSError as exc:
        raise ConfigurationError(
            f"no API key: set ORCHESTRA_API_KEY, or ORCHESTRA_HOME to the folder of a stack "
            f"({settings.api_key_file}: {exc.strerror})"
        ) from exc
    raise ConfigurationError(f"no API key: {settings.api_key_file} is empty")


def read_database_url(settings: Settings) -> str:
    """Where our database is: as set, else where the stack that is up in this home has put it.

    Raises:
        ConfigurationError: there is none.
    """
    if settings.database_url is not None:
        return settings.database_url
    try:
        return (settings.home / DATABASE_URL_FILE).read_text().strip()
    except OSError as exc:
        raise ConfigurationError(
            f"no database: start `orchestra up` in {settings.home}, or set ORCHESTRA_DATABASE_URL"
        ) from exc


def ensure_prefect_auth(settings: Settings) -> str:
    """`user:password` of the Prefect server that we start: the operator's, else a generated one kept in a file."""
    if settings.prefect_auth_string:
        return settings.prefect_auth_string
    return _ensure_secret(settings.prefect_auth_file, lambda: f"{AUTH_USER}:{secrets.token_urlsafe(24)}")


def _ensure_secret(path: Path, make: Callable[[], str]) -> str:
    try:
        if text := path.read_text().strip():
            if problem := readable_by_others(path):
                raise ConfigurationError(problem)
            return text
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise ConfigurationError(f"{path} can't be read: {exc.strerror}") from exc
    text = make()
    write_private(path, f"{text}\n")
    return text
