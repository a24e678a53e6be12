from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ai_task_orchestra import __version__

ORCHESTRA = Path(sys.executable).with_name("orchestra")


def test_the_installed_command_says_its_version() -> None:
    done = subprocess.run([ORCHESTRA, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"orchestra {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["up", "--help"], ["run", "--help"], ["keys", "create", "--help"]])
def test_help_needs_nothing_that_is_slow_to_import(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from ai_task_orchestra.cli.app import Invocation, application\n"
        f"application({arguments!r}, obj=Invocation(), standalone_mode=False)\n"
        "slow = {'prefect', 'fastapi', 'sqlalchemy', 'httpx', 'structlog'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {slow}' if slow else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout


def test_a_reader_that_has_enough_is_no_error() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{ORCHESTRA} --help | head -c 1"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
