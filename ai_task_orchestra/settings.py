"""Every setting of every process, read once at the edge (CLI, application factory, worker start) and passed in.

Our own variables carry the prefix `ORCHESTRA_`; other programs' variables keep their own names.
All may stand in a `.env` file in the working directory; the environment wins.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.protocol import CATALOG_MODULE

PositiveSeconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
CommaList = Annotated[tuple[str, ...], NoDecode]
PathList = Annotated[tuple[Path, ...], NoDecode]


class Settings(BaseSettings):
    """The configuration of one process.

    Durations are seconds, sizes are bytes. Relative paths are relative to the working directory.
    """

    model_config = SettingsConfigDict(
        env_prefix="ORCHESTRA_", env_file=".env", extra="ignore", populate_by_name=True, frozen=True
    )

    # Where things live and listen.
    home: Path = Path("./.orchestra")
    host: str = "127.0.0.1"
    port: Port = 8000
    prefect_host: str = "127.0.0.1"
    prefect_port: Port = 4200
    templates_dir: Path = Path("./templates")
    input_dirs: PathList = ()
    output_dirs: PathList = ()

    # The API's documentation page and OpenAPI document; unset: only while listening on loopback.
    docs: bool | None = None

    # Databases. Without a URL the embedded PostgreSQL serves both.
    database_url: str | None = None
    prefect_database_url: str | None = Field(
        default=None, validation_alias=AliasChoices("PREFECT_API_DATABASE_CONNECTION_URL", "prefect_database_url")
    )

    # Keys and addresses.
    api_key: str | None = None
    url: str | None = None
    prefect_api_url: str | None = Field(
        default=None, validation_alias=AliasChoices("PREFECT_API_URL", "prefect_api_url")
    )
    prefect_auth_string: str | None = Field(
        default=None, validation_alias=AliasChoices("PREFECT_API_AUTH_STRING", "prefect_auth_string")
    )
    ollama_host: str | None = Field(default=None, validation_alias=AliasChoices("OLLAMA_HOST", "ollama_host"))

    # The worker.
    work_pool: str = "default"
    worker_limit: Annotated[int, Field(ge=1)] = 2
    worker_name: str | None = None
    # The module that holds one flow object per template.
    catalog_module: str = CATALOG_MODULE
    git_protocols: CommaList = ("https", "ssh")
    # Hosts of repositories that may have private addresses, `*` for all.
    git_private_hosts: CommaList = ()
    # Who we are on which host: lines as in a .netrc file, readable by our account only. Default: below the home.
    git_credentials: Path | None = None
    # Whether the step http_request may reach addresses that are not on the public internet.
    http_allow_private: bool = False

    # Programs of tasks. Level of isolation: `auto` is the highest that the machine has, `1` exactly that one, `1+` at
    # least that one.
    isolation: Literal["auto", "0", "1", "1+", "2", "2+"] = "auto"
    # Folders with programs, libraries or data that every program may read.
    program_dirs: PathList = ()
    # Limits for a program with everything it starts. Memory that processes share counts once; unset: the machine's,
    # divided by one more than the worker's slots.
    program_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    program_cpu_seconds: PositiveSeconds | None = None
    program_processes: Annotated[int, Field(gt=0)] = 2048
    program_open_files: Annotated[int, Field(gt=0)] = 4096
    # For the workspace of a task: bytes and files in it, and what must stay free on its disk.
    workspace_bytes: Annotated[int, Field(gt=0)] = 10 * 1024**3
    workspace_files: Annotated[int, Field(gt=0)] = 500_000
    disk_reserve_bytes: Annotated[int, Field(ge=0)] = 256 * 1024**2
    git_max_bytes: Annotated[int, Field(gt=0)] = 4 * 1024**3

    # Limits.
    max_body_bytes: Annotated[int, Field(gt=0)] = 1024 * 1024
    max_parameters_bytes: Annotated[int, Field(gt=0)] = 512 * 1024
    max_nesting: Annotated[int, Field(gt=0)] = 64
    max_dependencies: Annotated[int, Field(gt=0)] = 1000
    max_output_bytes: Annotated[int, Field(gt=0)] = 1024 * 1024

    # Time-outs.
    connect_timeout_seconds: PositiveSeconds = 5.0
    first_token_timeout_seconds: PositiveSeconds = 300.0
    token_idle_timeout_seconds: PositiveSeconds = 60.0
    git_timeout_seconds: PositiveSeconds = 600.0
    step_timeout_seconds: PositiveSeconds = 3600.0
    task_timeout_seconds: PositiveSeconds = 86400.0

    # Clockwork between the processes; the defaults are the promised ones, tests shorten them.
    worker_heartbeat_seconds: PositiveSeconds = 5.0
    worker_lease_seconds: PositiveSeconds = 20.0
    worker_poll_seconds: PositiveSeconds = 2.0
    worker_grace_seconds: PositiveSeconds = 10.0
    mirror_active_seconds: PositiveSeconds = 2.0
    mirror_full_seconds: PositiveSeconds = 60.0
    adopt_seconds: PositiveSeconds = 10.0
    # The longest pause before a part of the stack that has ended is started again.
    restart_pause_seconds: PositiveSeconds = 30.0
    dispatch_window: Annotated[int, Field(gt=0)] = 1000

    log_level: str = "INFO"

    @field_validator("git_protocols", "git_private_hosts", "input_dirs", "output_dirs", "program_dirs", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Lists are written with commas (folders also with the system's path separator)."""
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.replace(os.pathsep, ",").split(",") if part.strip())

    @field_validator("home", "templates_dir", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("database_url", "prefect_database_url", mode="after")
    @classmethod
    def _postgresql_only(cls, value: str | None) -> str | None:
        """Prefect and our rows need PostgreSQL: SQLite answers concurrent creates with 503."""
        if value is not None and not value.startswith(("postgresql://", "postgres://", "postgresql+asyncpg://")):
            raise ValueError("only PostgreSQL is supported (postgresql://user:password@host/database)")
        return value

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Folders that `read_files` may read, most specific setting first."""
        return tuple(p.expanduser().absolute() for p in self.input_dirs) or (self.home / "inputs",)

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Folders that results may be stored in; relative paths go to the first."""
        return (self.home / "outputs", *(p.expanduser().absolute() for p in self.output_dirs))

    @property
    def git_credentials_file(self) -> Path:
        """Who we are on which git host; it need not exist."""
        return (self.git_credentials or self.home / "git-credentials").expanduser().absolute()

    @property
    def workspaces(self) -> Path:
        """One folder per task, made and removed by the worker."""
        return self.home / "workspaces"

    @property
    def api_url(self) -> str:
        """Where a client finds the REST API, without the `/api/v1`."""
        return (self.url or f"http://{_connectable(self.host)}:{self.port}").rstrip("/")

    @property
    def prefect_url(self) -> str:
        """Prefect's API address: the one given, else that of the server `orchestra up` starts."""
        return (self.prefect_api_url or f"http://{_connectable(self.prefect_host)}:{self.prefect_port}/api").rstrip("/")

    @property
    def prefect_ui_url(self) -> str:
        """Prefect's UI, which its server offers beside the API."""
        return self.prefect_url.removesuffix("/api")

    @property
    def ollama_url(self) -> str:
        """The model backend's address, completed as Ollama's own tools do: with a scheme, that scheme's port."""
        scheme, separator, rest = (self.ollama_host or "127.0.0.1").strip().rpartition("://")
        port = {"https": 443, "http": 80}.get(scheme, 11434) if separator else 11434
        authority, _, path = _connectable(rest.rstrip("/")).partition("/")
        if not authority.rpartition(":")[2].isdecimal() or authority.endswith("]"):
            authority = f"{authority}:{port}"
        return f"{scheme or 'http'}://{authority}{'/' if path else ''}{path}"

    @property
    def api_key_file(self) -> Path:
        """The generated admin key, mode 0600."""
        return self.home / "api-key"

    @property
    def prefect_auth_file(self) -> Path:
        """`user:password` of the Prefect server that `orchestra up` starts, mode 0600."""
        return self.home / "prefect-auth"


def _connectable(host: str) -> str:
    """A wildcard bind address is no address to connect to."""
    for wildcard in ("0.0.0.0", "[::]", "::"):  # noqa: S104  (never bound here)
        if host == wildcard or host.startswith(f"{wildcard}:"):
            return host.replace(wildcard, "127.0.0.1", 1)
    return host


def load_settings(**overrides: Any) -> Settings:
    """Read the settings.

    Raises:
        ConfigurationError: a variable has a value that can't be used; the message names each variable.
    """
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        problems = "; ".join(f"{_variable(str(e['loc'][0]))}: {e['msg']}" for e in exc.errors(include_input=False))
        raise ConfigurationError(f"unusable settings: {problems}") from exc


def _variable(name: str) -> str:
    return name if name.isupper() else f"ORCHESTRA_{name.upper()}"
