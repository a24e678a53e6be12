"""The whole product as its user has it: `orchestra up` in a home of its own, with a scripted model server."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from playwright.sync_api import Page, sync_playwright

from tests.support import servers
from tests.support.waiting import wait_until_sync

ROOT = Path(__file__).parents[2]
ORCHESTRA = Path(sys.executable).with_name("orchestra")
BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
BROWSER_FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@dataclass
class RunningStack:
    """A stack that is up.

    `api` is a client with the key, `prefect` one of Prefect's API; `environment` is what the stack was started with.
    """

    home: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    api: httpx.Client
    prefect: httpx.Client
    ollama: str

    @property
    def output(self) -> str:
        """What `up` has printed so far."""
        return (self.home / "up.log").read_text()

    @property
    def prefect_api_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['ORCHESTRA_PREFECT_PORT']}/api"

    @property
    def prefect_auth(self) -> str:
        return (self.home / "prefect-auth").read_text().strip()

    def submit(self, template: str, parameters: dict, **more) -> str:
        answer = self.api.post("/tasks", json={"template": template, "parameters": parameters, **more})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def wait_for(self, task_id: str, status: str = "completed", timeout: float = 60) -> dict:
        """The task once it has `status`; another final state fails at once."""

        def reached() -> dict | None:
            task = self.api.get(f"/tasks/{task_id}").json()
            if task["status"] == status:
                return task
            assert task["status"] in ("queued", "running"), task
            return None

        return wait_until_sync(reached, timeout=timeout, description=f"task {task_id} {status}")


def environment(home: Path, **more: str) -> dict[str, str]:
    """A clean environment for `orchestra up`, with free ports and nothing of the person who runs the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ORCHESTRA_", "OLLAMA_"))}
    return kept | {
        "ORCHESTRA_HOME": str(home),
        "ORCHESTRA_PORT": str(servers.free_port()),
        "ORCHESTRA_PREFECT_PORT": str(servers.free_port()),
        "ORCHESTRA_GIT_PROTOCOLS": "https,ssh,file",
        **more,
    }


def family(pid: int) -> list[psutil.Process]:
    """A process and everything below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


@contextlib.contextmanager
def running(env: dict[str, str], ollama: str = "") -> Iterator[RunningStack]:
    """`orchestra up` until it is ready; SIGTERM at the end, after which nothing of it may be left."""
    home = Path(env["ORCHESTRA_HOME"])
    with (home / "up.log").open("ab") as log:
        child = subprocess.Popen([ORCHESTRA, "up"], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    base = f"http://127.0.0.1:{env['ORCHESTRA_PORT']}"
    try:

        def ready() -> bool:
            assert child.poll() is None, (home / "up.log").read_text()
            with contextlib.suppress(httpx.HTTPError):
                return (
                    httpx.get(f"{base}/ready", timeout=2).status_code == 200 and "curl" in (home / "up.log").read_text()
                )
            return False

        wait_until_sync(ready, timeout=240, description=f"stack ready, log {home / 'up.log'}")
        key = (home / "api-key").read_text().strip()
        user, _, password = (home / "prefect-auth").read_text().strip().partition(":")
        prefect = f"http://127.0.0.1:{env['ORCHESTRA_PREFECT_PORT']}/api"
        with (
            httpx.Client(base_url=f"{base}/api/v1", headers={"X-API-Key": key}, timeout=30) as api,
            httpx.Client(base_url=prefect, auth=(user, password), timeout=30) as prefect_client,
        ):
            yield RunningStack(home, env, child, api, prefect_client, ollama)
    finally:
        members = family(child.pid)
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                for member in members:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()
                child.wait()
                raise
        _, left = psutil.wait_procs(members, timeout=3)
        assert not left, f"left running after SIGTERM: {left}"


@contextlib.contextmanager
def model_server(models: list[dict]) -> Iterator[str]:
    """The address of a scripted model server with these models."""
    with servers.open_folder() as home:
        port = servers.free_port()
        script = home / "models.json"
        script.write_text(json.dumps({"models": models}))
        argv = [sys.executable, "-m", "ai_task_orchestra.testing.scripted_ollama", "--port", str(port)]
        with servers.process([*argv, "--script", str(script)], log=home / "ollama.log"):
            url = f"http://127.0.0.1:{port}"

            def ready() -> bool:
                with contextlib.suppress(httpx.HTTPError):
                    return httpx.get(f"{url}/api/version", timeout=2).status_code == 200
                return False

            wait_until_sync(ready, description="scripted model server ready")
            yield url


@pytest.fixture(scope="session")
def ollama() -> Iterator[str]:
    """The address of a scripted model server that has the reference's model."""
    with model_server([{"name": "llama3.1:8b", "size_bytes": 8100000000, "text": "Qubits can be both."}]) as url:
        yield url


@pytest.fixture(scope="session")
def stack(ollama: str) -> Iterator[RunningStack]:
    """One stack for all acceptance tests of a session."""
    with servers.open_folder() as home, running(environment(home, OLLAMA_HOST=ollama), ollama) as up:
        yield up


@pytest.fixture
def page(stack: RunningStack) -> Iterator[Page]:
    """A page of Debian's chromium, signed in to Prefect's UI the way its login form does it."""
    executable = next((p for p in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(p).exists()), None)
    if executable is None and not os.environ.get("CI"):
        pytest.skip("chromium is not installed")
    password = base64.b64encode(stack.prefect_auth.encode()).decode()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=BROWSER_FLAGS)
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        context.add_init_script(f"localStorage.setItem('prefect-password', '{password}')")
        yield context.new_page()
        browser.close()
