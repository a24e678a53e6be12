"""Files and folders: who besides us may read what is secret, and who may change what we run."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ai_task_orchestra.doctor.findings import Finding, note, or_ok, problem
from ai_task_orchestra.exposure import readable_by_others, secret_files
from ai_task_orchestra.settings import Settings

_ENV_FILE: Final = Path(".env")
#: Variables of a `.env` file that nobody else should read.
_SECRETS: Final = re.compile(
    r"^\s*(?:export\s+)?[A-Z_]*(?:API_KEY|AUTH_STRING|PASSWORD|DATABASE_URL|CONNECTION_URL)\s*=", re.M
)
_OTHERS_MAY_WRITE: Final = 0o022


def check_files(settings: Settings) -> list[Finding]:
    """Secrets, the data folder, the templates; the `.env` file of the working directory."""
    secrets = [*_secrets(settings), *_env_file()]
    folders = [*_folder("the data folder", settings.home), *_folder("the folder of templates", settings.templates_dir)]
    return [
        *or_ok("secrets", secrets, f"the keys and passwords in {settings.home} are readable by their owner only"),
        *or_ok("folders", folders, "nobody else can change the data folder or the templates"),
    ]


def _secrets(settings: Settings) -> Iterator[Finding]:
    for path in secret_files(settings):
        if said := readable_by_others(path):
            what, _, mend = said.partition(": ")
            yield problem("secrets", what, mend)
        elif path.exists() and not os.access(path, os.R_OK):
            yield note("secrets", f"{path} can't be read by this account, so what is in it was not looked at")


def _env_file() -> Iterator[Finding]:
    try:
        holds_secrets = _SECRETS.search(_ENV_FILE.read_text(errors="replace")) is not None
    except OSError:
        return
    if holds_secrets and readable_by_others(_ENV_FILE):
        path = _ENV_FILE.absolute()
        yield problem("secrets", f"{path} holds a password or a key and is open to other accounts", f"chmod 600 {path}")


def _folder(what: str, path: Path) -> Iterator[Finding]:
    """A folder that others may change, or a way to it on which they could put another in its place."""
    for place in (path, *path.parents):
        try:
            found = place.stat()
        except OSError:
            continue
        name = f"{what} {place}" if place == path else f"{place}, in which {what} lies,"
        if found.st_uid not in (0, os.geteuid(), _owner(path)):
            yield problem(
                "folders", f"{name} belongs to another account", f"chown it to the account that runs us: {place}"
            )
        # Into a folder with the sticky bit (/tmp) others may put things, but not move ours away.
        elif found.st_mode & _OTHERS_MAY_WRITE and (place == path or not found.st_mode & stat.S_ISVTX):
            says = f"{name} can be changed by other accounts (mode {stat.S_IMODE(found.st_mode):04o})"
            yield problem("folders", says, f"chmod go-w {place}")


def _owner(path: Path) -> int:
    """Whose folder it is: the doctor may be called by root."""
    try:
        return path.stat().st_uid
    except OSError:
        return os.geteuid()
