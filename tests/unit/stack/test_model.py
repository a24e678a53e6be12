"""Finding a model server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from ai_task_orchestra.stack import model
from ai_task_orchestra.stack.child import ChildSpec, StartError
from ai_task_orchestra.stack.model import ModelServer, find_ollama
from ai_task_orchestra.stack.model_fetch import fetch
from ai_task_orchestra.stack.supervisor import Supervisor
from tests.support.servers import free_port
from tests.unit.cli.fake_api import FakeApi, fake_api


@pytest.fixture
def server():
    with fake_api(key=None) as served:
        yield served


async def test_an_ollama_that_answers_is_taken_with_its_models(server: FakeApi) -> None:
    server.on("GET", "/api/version", (200, {"version": "0.33.0"}))
    server.on("GET", "/api/tags", (200, {"models": [{"name": "b:1"}, {"name": "a:2"}]}))
    assert await find_ollama(server.url) == ModelServer(server.url, embedded=False, models=("b:1", "a:2"))


async def test_nobody_there_is_none() -> None:
    assert await find_ollama(f"http://127.0.0.1:{free_port()}") is None


@pytest.mark.parametrize("body", [b"<html>", b'{"models": [1]}', b'{"models": {}}', b"[]"])
async def test_something_else_than_ollama_is_none(server: FakeApi, body: bytes) -> None:
    server.on("GET", "/api/version", (200, {"version": "1"}))
    server.on("GET", "/api/tags", (200, body))
    found = await find_ollama(server.url)
    assert found is None or found.models == ()


def test_a_missing_engine_or_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "ENGINE_LIBRARY", "libnosuch.so.1")
    assert "libnosuch.so.1 is missing" in (model.engine_problem() or "")
    assert "apt-get install libgomp1" in (model.engine_problem() or "")
    monkeypatch.setattr(model, "ENGINE_PACKAGE", "no_such_package")
    assert "no_such_package" in (model.engine_problem() or "")


class Fetching:
    """A supervisor whose child writes the given lines."""

    def __init__(self, folder: Path) -> None:
        (folder / "logs").mkdir()
        self.supervisor = Supervisor(folder / "logs", print)

    def spec(self, *lines: object, code: int = 0) -> ChildSpec:
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        return ChildSpec("model-file", ["/bin/sh", "-c", f"printf '%s' '{text}'; exit {code}"], {})


@pytest.fixture
async def fetching(tmp_path: Path):
    made = Fetching(tmp_path)
    yield made
    await made.supervisor.stop(asyncio.Event())


async def test_the_fetched_file_is_the_one_the_child_names(fetching: Fetching) -> None:
    spec = fetching.spec({"completed": 1, "total": 2}, {"path": "/cache/small.gguf"})
    assert await fetch(fetching.supervisor, spec, print) == Path("/cache/small.gguf")


async def test_a_failed_fetch_is_told_in_the_childs_own_words(fetching: Fetching) -> None:
    with pytest.raises(StartError, match=r"^the disk is full$"):
        await fetch(fetching.supervisor, fetching.spec({"error": "the disk is full"}, code=2), print)


async def test_a_fetch_that_names_nothing_is_an_error(fetching: Fetching) -> None:
    with pytest.raises(StartError, match="named no file"):
        await fetch(fetching.supervisor, fetching.spec("done"), print)
