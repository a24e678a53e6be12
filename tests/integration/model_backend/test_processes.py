"""Runners and their parent: what happens when either ends, in order or not."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import psutil
import pytest

from tests.support.model_backend import ModelBackend, model_backend, model_path
from tests.support.servers import free_port
from tests.support.waiting import wait_until, wait_until_sync

MODEL = "smollm2:135m"
PROMPT = "Write a very long story about the sea."
LONG = {"num_predict": 4000}
STORY = {"model": MODEL, "prompt": PROMPT, "options": LONG}


def ended(processes: list[psutil.Process]) -> bool:
    """Gone, or only waiting for an init process that never asks."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                return False
    return True


@pytest.fixture
def backend() -> Iterator[ModelBackend]:
    with model_backend("--ctx", "512", "--threads", "1") as running:
        yield running


def test_a_runner_that_dies_in_a_stream_is_an_error_line_and_the_next_request_loads_anew(backend: ModelBackend) -> None:
    client = ollama.Client(host=backend.url, timeout=60)
    stream = client.generate(MODEL, PROMPT, stream=True, options=LONG)
    next(stream)
    (runner,) = backend.runners()
    runner.send_signal(signal.SIGKILL)
    with pytest.raises(ollama.ResponseError, match="unexpectedly stopped") as caught:
        for _ in stream:
            pass
    assert caught.value.status_code == -1
    wait_until_sync(lambda: not client.ps().models, timeout=5, description="dead runner forgotten")
    again = client.generate(MODEL, "hi", options={"num_predict": 1})
    assert again.done
    client._client.close()


async def test_a_model_being_loaded_is_listed_and_goes_with_the_caller_that_hangs_up(backend: ModelBackend) -> None:
    async with httpx.AsyncClient(base_url=backend.url, timeout=60) as client:

        async def listed() -> list[int]:
            return [model["size"] for model in (await client.get("/api/ps")).json()["models"]]

        load = asyncio.create_task(client.post("/api/generate", json={"model": MODEL}))
        assert await wait_until(listed, description="model listed") == [98_362_432]  # the file: not loaded yet
        load.cancel()
        await wait_until(lambda: not backend.runners(), description="no runner left")
        assert await listed() == []


def test_sigterm_ends_an_answer_and_everything_else_within_two_seconds(backend: ModelBackend) -> None:
    with httpx.stream("POST", f"{backend.url}/api/generate", json=STORY, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        runners = backend.runners()
        assert len(runners) == 1
        parent = psutil.Process(backend.pid)
        began = time.monotonic()
        parent.send_signal(signal.SIGTERM)
        rest = list(lines)
    wait_until_sync(lambda: ended([parent, *runners]), timeout=5, description="backend gone")
    assert time.monotonic() - began < 2
    assert "error" in rest[-1]


def test_killing_the_parent_leaves_no_runner(backend: ModelBackend) -> None:
    httpx.post(f"{backend.url}/api/generate", json={"model": MODEL}, timeout=60)
    runners = backend.runners()
    assert len(runners) == 1
    psutil.Process(backend.pid).kill()
    wait_until_sync(lambda: ended(runners), timeout=5, description="runner gone")


def test_a_web_page_can_not_use_the_backend(backend: ModelBackend) -> None:
    foreign = httpx.get(f"{backend.url}/api/tags", headers={"Origin": "https://example.com"})
    rebound = httpx.get(f"{backend.url}/api/tags", headers={"Host": "evil.example"})
    assert (foreign.status_code, rebound.status_code) == (403, 403)


def test_the_engine_itself_answers_nobody_without_its_key(backend: ModelBackend) -> None:
    httpx.post(f"{backend.url}/api/generate", json={"model": MODEL}, timeout=60)
    (runner,) = backend.runners()
    (port,) = {link.laddr.port for link in runner.net_connections() if link.status == psutil.CONN_LISTEN}
    assert httpx.post(f"http://127.0.0.1:{port}/completion", json={"prompt": "x"}).status_code == 401
    assert not any(len(word) == 32 for word in runner.cmdline())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--host", "0.0.0.0"], "only a loopback address"),
        (["--model", "nameless"], "expected NAME=PATH"),
        (["--model", "a=/nonexistent.gguf"], "can't be read"),
        (["--model", f"a={__file__}"], "not a GGUF file"),
        (["--keep-alive", "soon"], "invalid duration"),
        (["--threads", "0"], "must be at least 1"),
    ],
)
def test_a_wrong_command_line_is_explained_with_exit_code_2(flags: list[str], says: str) -> None:
    argv = [sys.executable, "-m", "ai_task_orchestra.model_backend", "--port", str(free_port()), *flags]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_explained_with_exit_code_2(backend: ModelBackend) -> None:
    port = backend.url.rsplit(":", 1)[1]
    argv = [sys.executable, "-m", "ai_task_orchestra.model_backend", "--port", port, "--no-model"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"port {port}" in done.stderr


def test_a_damaged_model_is_an_error_of_its_request_only(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    with model_path().open("rb") as file:
        damaged.write_bytes(file.read(20_000_000))  # a whole header, half of the tensors
    with model_backend("--model", f"damaged={damaged}", "--ctx", "256", "--threads", "1") as backend:
        bad = httpx.post(f"{backend.url}/api/generate", json={"model": "damaged", "prompt": "hi"}, timeout=60)
        assert bad.status_code == 500
        assert "unable to load model" in bad.json()["error"]
        request = {"model": MODEL, "prompt": "hi", "options": {"num_predict": 1}, "stream": False}
        assert httpx.post(f"{backend.url}/api/generate", json=request, timeout=60).json()["done"]
