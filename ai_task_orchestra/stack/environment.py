"""What each child is told, and nothing it has no use for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ai_task_orchestra.settings import Settings

# Given to a child by name only. A profile of the user's own would not be found under our PREFECT_HOME.
NOT_INHERITED: Final = frozenset(
    {
        "ORCHESTRA_DATABASE_URL",
        "ORCHESTRA_API_KEY",
        "ORCHESTRA_URL",
        "PREFECT_API_DATABASE_CONNECTION_URL",
        "PREFECT_API_DATABASE_PASSWORD",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL",
        "PREFECT_SERVER_DATABASE_PASSWORD",
        "PREFECT_SERVER_API_AUTH_STRING",
        "PREFECT_API_AUTH_STRING",
        "PREFECT_API_KEY",
        "PREFECT_API_URL",
        "PREFECT_HOME",
        "PREFECT_PROFILE",
        "PREFECT_PROFILES_PATH",
        "OLLAMA_HOST",
        "PGPASSWORD",
    }
)

QUIET: Final = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Wiring:
    """Where the parts of a stack find each other; secrets included.

    `prefect_database_url` is None when the Prefect server is not ours.
    """

    settings: Settings
    database_url: str
    prefect_database_url: str | None
    prefect_auth: str | None
    ollama_url: str

    def for_prefect_server(self) -> dict[str, str]:
        """The Prefect server: its own database, and the password that its clients must have."""
        url, auth = self.prefect_database_url or "", self.prefect_auth or ""
        # Its own pages only, however this machine is called there; Prefect would answer every page of the web.
        pages = ",".join(f"http://{host}:{self.settings.prefect_port}" for host in ("127.0.0.1", "localhost"))
        return (
            {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": pages}
            | _inherited()
            | {
                **QUIET,
                "PREFECT_HOME": str(self.settings.home / "prefect"),
                "PREFECT_API_URL": self.settings.prefect_url,
                "PREFECT_API_DATABASE_CONNECTION_URL": url,
                "PREFECT_SERVER_API_AUTH_STRING": auth,
                "PREFECT_API_AUTH_STRING": auth,
                "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
                "PREFECT_LOGGING_COLORS": "false",
            }
        )

    def for_migration(self) -> dict[str, str]:
        """Our migrations: the database only."""
        return self._ours() | {"ORCHESTRA_DATABASE_URL": self.database_url}

    def for_bootstrap(self) -> dict[str, str]:
        """What registers the deployments: Prefect only."""
        return self._ours() | self._prefect_client()

    def for_api(self) -> dict[str, str]:
        """The API: database, Prefect, the operator's key if there is one, and where models are."""
        key = {"ORCHESTRA_API_KEY": self.settings.api_key} if self.settings.api_key else {}
        return self.for_worker() | key | {"ORCHESTRA_DATABASE_URL": self.database_url}

    def for_worker(self) -> dict[str, str]:
        """The worker: Prefect and where models are."""
        return self._ours() | self._prefect_client() | {"OLLAMA_HOST": self.ollama_url}

    def for_model_backend(self) -> dict[str, str]:
        """The model backend: nothing of all this."""
        return self._ours()

    def _ours(self) -> dict[str, str]:
        settings = self.settings
        return _inherited() | {
            **QUIET,
            "ORCHESTRA_HOME": str(settings.home),
            "ORCHESTRA_TEMPLATES_DIR": str(settings.templates_dir),
        }

    def _prefect_client(self) -> dict[str, str]:
        return prefect_client_environment(self.settings, self.prefect_auth)


def prefect_client_environment(settings: Settings, auth: str | None = None) -> dict[str, str]:
    """How a process of ours reaches Prefect.

    `auth` is None for the configured one, else the one that `orchestra up` generated in this home, if the server is
    its own.
    """
    auth = auth or settings.prefect_auth_string
    if auth is None and settings.prefect_api_url is None and settings.prefect_auth_file.is_file():
        auth = settings.prefect_auth_file.read_text().strip()
    environment = {
        "PREFECT_API_URL": settings.prefect_url,
        "PREFECT_HOME": str(settings.home / "prefect"),
        "DO_NOT_TRACK": "1",
    }
    if auth:
        environment["PREFECT_API_AUTH_STRING"] = auth
    if settings.prefect_api_url is None:
        environment["PREFECT_CLIENT_CSRF_SUPPORT_ENABLED"] = "false"  # our server asks for no token
    elif key := os.environ.get("PREFECT_API_KEY"):
        environment["PREFECT_API_KEY"] = key
    return environment


def postgres_environment() -> dict[str, str]:
    """PostgreSQL: nothing but how to find programs."""
    return {"PATH": os.environ.get("PATH", os.defpath), "TZ": "UTC", "LC_ALL": "C"}


def _inherited(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in NOT_INHERITED}
