"""The scripted server as a tool: in a test's process, and as a process that others steer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import pytest

from ai_task_orchestra.testing.scripted_ollama import ScriptedModel, ScriptedOllama, main
from tests.support import servers
from tests.support.waiting import wait_until, wait_until_sync

SCRIPT = """
memory_bytes: 250000000
models:
  - {name: "a:1b", text: From the file.}
  - {name: "b:1b"}
  - {name: "c:1b"}
scripts:
  - {model: "b:1b", fault: status, status: 503, times: 1}
"""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "script.yaml").write_text(SCRIPT)
    port = servers.free_port()
    module = "ai_task_orchestra.testing.scripted_ollama"
    argv = [sys.executable, "-m", module, "--port", str(port), "--script", str(tmp_path / "script.yaml")]
    with servers.process(argv, log=tmp_path / "log"):
        address = f"http://127.0.0.1:{port}"
        wait_until_sync(lambda: "listening" in (tmp_path / "log").read_text(), description="the server listens")
        yield address


def test_a_script_file_sets_models_memory_and_faults(url: str) -> None:
    client = ollama.Client(host=url)
    assert client.generate("a:1b", "hi").response == "From the file."
    with pytest.raises(ollama.ResponseError) as caught:
        client.generate("b:1b", "hi")
    assert caught.value.status_code == 503
    client.generate("b:1b", "hi")
    client.generate("c:1b", "hi")

    assert len(client.ps().models) == 2
    statistics = httpx.get(f"{url}/__statistics").json()
    assert (statistics["loads"], statistics["swaps"], statistics["running"]) == (3, 1, 0)


def test_another_process_steers_it_over_http(url: str) -> None:
    client = ollama.Client(host=url)
    httpx.delete(f"{url}/__requests").raise_for_status()
    httpx.post(f"{url}/__models", json={"name": "new:1b"}).raise_for_status()
    httpx.post(f"{url}/__script", json=[{"model": "new:1b", "text": "As told."}]).raise_for_status()
    assert client.generate("new:1b", "hi").response == "As told."
    httpx.delete(f"{url}/__script").raise_for_status()
    assert client.generate("new:1b", "hi").response != "As told."

    requests = httpx.get(f"{url}/__requests").json()
    assert [(entry["endpoint"], entry["model"], entry["outcome"]) for entry in requests] == [
        ("generate", "new:1b", "answered"),
        ("generate", "new:1b", "answered"),
    ]
    assert requests[0]["body"]["prompt"] == "hi"


def test_it_refuses_connections_for_as_long_as_told(url: str) -> None:
    httpx.post(f"{url}/__refuse", json={"seconds": 0.3}).raise_for_status()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/api/version")

    def back() -> bool:
        try:
            return httpx.get(f"{url}/api/version").is_success
        except httpx.ConnectError:
            return False

    wait_until_sync(back, description="it takes connections again")


@pytest.mark.parametrize("body", [{"fault": "nonsense"}, {"typo": 1}, 7])
def test_a_script_that_means_nothing_is_refused(url: str, body: object) -> None:
    assert httpx.post(f"{url}/__script", json=body).status_code == 422


def test_a_file_that_can_not_be_used_ends_the_program_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("models: [{nam: a}]")
    assert main(["--script", str(broken)]) == 2
    assert "nam" in capsys.readouterr().err


def test_sigterm_ends_it_although_a_request_hangs(tmp_path: Path) -> None:
    module = "ai_task_orchestra.testing.scripted_ollama"
    spec = tmp_path / "s.json"
    spec.write_text(json.dumps({"scripts": [{"fault": "hang"}]}))
    with subprocess.Popen(
        [sys.executable, "-m", module, "--script", str(spec)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        address = child.stdout.readline().split()[-1]
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/api/generate", json={"model": "m", "prompt": "x"}, timeout=0.2)
        child.terminate()
        _, errors = child.communicate(timeout=10)
    assert child.returncode == 0
    assert errors == ""


async def test_the_latest_script_that_fits_wins_and_counts_its_requests() -> None:
    async with ScriptedOllama(models=[ScriptedModel(name="m")]) as server:
        client = ollama.AsyncClient(host=server.url)
        server.script(text="always")
        server.script(contains="red", text="red", skip=1, times=1)
        said = [(await client.generate("m", prompt)).response for prompt in ("blue", "red", "red", "red")]
        assert said == ["always", "always", "red", "always"]
        await client.close()  # type: ignore[no-untyped-call]


async def test_a_client_that_leaves_is_counted_and_its_slot_freed() -> None:
    async with ScriptedOllama(models=[ScriptedModel(name="m", text="word " * 999, tokens_per_second=100)]) as server:
        client = ollama.AsyncClient(host=server.url)
        asking = asyncio.create_task(client.generate("m", "Tell a story."))
        await wait_until(lambda: server.statistics.running == 1, description="the generation runs")
        asking.cancel()
        await wait_until(lambda: server.statistics.cancelled == 1, description="the server saw the client leave")
        assert server.requests[0].outcome == "cancelled"
        assert server.statistics.running == 0
        await client.close()  # type: ignore[no-untyped-call]


async def test_leaving_the_server_ends_what_still_runs() -> None:
    async with ScriptedOllama(models=[ScriptedModel(name="m")]) as server:
        server.script(fault="hang")
        asking = asyncio.create_task(ollama.AsyncClient(host=server.url).generate("m", "hi"))
        await wait_until(lambda: server.requests, description="the request arrived")
    with pytest.raises(httpx.HTTPError):
        await asyncio.wait_for(asking, 5)
