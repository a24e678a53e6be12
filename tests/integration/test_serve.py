"""The API as a process: `python -m api.serve`."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ai_task_orchestra.stack.postgres import EmbeddedPostgres
from tests.support.api_app import INFERENCE, KEY
from tests.support.served_api import answers, api_environment, running


@pytest.fixture(scope="module")
def environment(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables for a process with a migrated database, a free port, and nobody at Prefect's address."""
    return api_environment(tmp_path_factory.mktemp("serve"), postgres_server)


def ended_with(environment: dict[str, str]) -> tuple[int, str]:
    """How a process that must not start ends."""
    done = subprocess.run(
        [sys.executable, "-m", "api.serve"], env=environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


def test_it_accepts_tasks_while_prefect_is_away_and_ends_cleanly(environment: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    with running(environment, log, "api.serve") as (child, url):
        body = {"template": "ollama-inference", "parameters": INFERENCE}
        assert httpx.post(f"{url}/api/v1/tasks", json=body, headers={"X-API-Key": KEY}).status_code == 201
        ready = httpx.get(f"{url}/ready")
        assert (ready.status_code, list(ready.json()["missing"])) == (503, ["prefect"])
        send_garbage(environment)
        assert answers(url)
        child.send_signal(signal.SIGTERM)
        assert child.wait(15) == 0, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said
    assert KEY not in said
    assert INFERENCE["prompt"] not in said


def test_a_bare_uvicorn_serves_it_too(environment: dict[str, str], tmp_path: Path) -> None:
    arguments = ("uvicorn", "api.main:app", "--port", environment["ORCHESTRA_PORT"])
    with running(environment, tmp_path / "api.log", *arguments) as (_, url):
        assert httpx.get(f"{url}/api/v1/tasks", headers={"X-API-Key": KEY}).status_code == 200
        assert httpx.get(f"{url}/api/v1/tasks").status_code == 401


def send_garbage(environment: dict[str, str]) -> None:
    """What is no proper HTTP: refused, or the connection ends."""
    address = ("127.0.0.1", int(environment["ORCHESTRA_PORT"]))
    for garbage in (b"\x00\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n"):
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(garbage)
            assert connection.recv(4096)[:10] in (b"HTTP/1.1 4", b"")


def test_it_refuses_to_be_reached_from_outside_without_a_key(environment: dict[str, str]) -> None:
    code, said = ended_with(environment | {"ORCHESTRA_HOST": "0.0.0.0", "ORCHESTRA_API_KEY": ""})
    assert code == 2
    assert "error: refusing to listen on 0.0.0.0 without an API key" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("key", "why"), [("your-api-key-here", "sample"), ("hunter2", "7 characters")])
def test_it_refuses_to_be_reached_from_outside_with_a_key_that_can_be_guessed(
    environment: dict[str, str], key: str, why: str
) -> None:
    code, said = ended_with(environment | {"ORCHESTRA_HOST": "0.0.0.0", "ORCHESTRA_API_KEY": key})
    assert code == 2
    assert "error: ORCHESTRA_API_KEY" in said and why in said and "secrets" in said
    assert "Traceback" not in said


def test_it_refuses_a_key_file_that_others_can_read(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "api-key").write_text("ato_something")
    (tmp_path / "api-key").chmod(0o644)
    code, said = ended_with(environment | {"ORCHESTRA_HOME": str(tmp_path)})
    assert code == 2
    assert f"chmod 600 {tmp_path}/api-key" in said
    assert "Traceback" not in said


def test_a_taken_port_is_told(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(environment["ORCHESTRA_PORT"]))):
        code, said = ended_with(environment)
    assert code == 2
    assert "ORCHESTRA_PORT" in said
    assert "Traceback" not in said
