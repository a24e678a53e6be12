"""Container, compose and service files name only commands, settings and files that exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from ai_task_orchestra.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
UNITS = sorted((DEPLOYMENTS / "systemd").glob("*.service"))
ORCHESTRA = Path(sys.executable).with_name("orchestra")
POSTGRES_IMAGE = {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"}


def our_settings() -> set[str]:
    names = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names |= (
            {str(choice) for choice in alias.choices} if hasattr(alias, "choices") else {f"ORCHESTRA_{name.upper()}"}
        )
    return names


def prefect_settings() -> set[str]:
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings as PrefectSettings

    return set(_get_settings_fields(PrefectSettings))


def assert_known_settings(names: set[str]) -> None:
    known = our_settings() | prefect_settings() | POSTGRES_IMAGE | {"DO_NOT_TRACK", "PYTHONUNBUFFERED", "PATH"}
    assert names <= known, names - known


def assert_command_exists(command: list[str]) -> None:
    """`orchestra X --option`: the CLI has it. `python -m M`: the module is there. `prefect ...`: Prefect has it."""
    program, *rest = command
    if program == "python":
        assert rest[0] == "-m"
        assert find_spec(rest[1]) is not None, command
        return
    words = [word for word in rest if not word.startswith("-")]
    path = words[:2] if program == "prefect" else words[:1]
    argv = [str(ORCHESTRA)] if program == "orchestra" else [sys.executable, "-m", "prefect"]
    shown = subprocess.run(
        [*argv, *path, "--help"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert shown.returncode == 0, shown.stderr
    for option in (word for word in rest if word.startswith("--")):
        assert option in shown.stdout, f"{command} has no {option}"


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())


def test_every_container_of_ours_runs_a_command_that_exists(compose: dict) -> None:
    ours = {name: service for name, service in compose["services"].items() if service["image"] == "ai-task-orchestra"}
    assert {"prefect", "migrate", "bootstrap", "api", "worker"} <= ours.keys()
    for service in ours.values():
        assert_command_exists([*service.get("entrypoint", ["orchestra"]), *service["command"]])


def test_every_variable_in_the_compose_file_is_a_setting(compose: dict) -> None:
    for service in compose["services"].values():
        assert_known_settings(set(service.get("environment", {})))


def test_containers_wait_for_services_and_use_volumes_that_exist(compose: dict) -> None:
    services, volumes, configs = compose["services"], compose["volumes"], compose["configs"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other} to be healthy"
        assert {volume.split(":")[0] for volume in service.get("volumes", ())} <= volumes.keys()
        assert {config["source"] for config in service.get("configs", ())} <= configs.keys()


def test_only_loopback_is_published_and_no_secret_is_written_down(compose: dict) -> None:
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|AUTH|KEY|DATABASE_(CONNECTION_)?URL", name):
                assert "${" in str(value), name


def test_the_worker_container_knows_no_database(compose: dict) -> None:
    assert not any("DATABASE" in name for name in compose["services"]["worker"]["environment"])


def test_the_image_is_made_of_files_that_exist_and_runs_as_nobody_special() -> None:
    lines = (DEPLOYMENTS / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY "):
            assert (ROOT / line.split()[1]).exists(), line
    assert "USER orchestra" in lines
    assert any("--require-hashes" in line for line in lines)
    variables = re.findall(r"^(?:ENV|   ) +([A-Z_]+)=", "\n".join(lines), flags=re.M)
    assert_known_settings(set(variables))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_every_service_runs_a_command_that_exists_with_real_settings(unit: Path) -> None:
    text = unit.read_text()
    commands = re.findall(r"^ExecStart(?:Pre)?=/opt/orchestra/\.venv/bin/(.+)$", text, flags=re.M)
    assert commands
    for command in commands:
        assert_command_exists(command.replace("%i", "default").split())
    variables = re.findall(r"^(?:Environment=|#   ).*", text, flags=re.M)
    assert_known_settings({name for line in variables for name in re.findall(r"\b([A-Z][A-Z_]+)=", line)})


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_wrong_with_the_service(unit: Path, tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    for name in (other.name for other in UNITS):
        # The programs are where this checkout has them.
        text = (unit.parent / name).read_text().replace("/opt/orchestra/.venv/bin/", f"{Path(sys.executable).parent}/")
        text = text.replace("WorkingDirectory=/opt/orchestra", f"WorkingDirectory={ROOT}").replace(
            "EnvironmentFile=", "EnvironmentFile=-"
        )
        (tmp_path / name).write_text(text)
    name = unit.name.replace("@.", "@default.")
    done = subprocess.run(
        [tool, "verify", "--recursive-errors=no", "--man=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    problems = [line for line in done.stderr.splitlines() if str(tmp_path) in line or name in line]
    assert not problems, done.stderr
