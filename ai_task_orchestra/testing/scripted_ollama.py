"""A loopback server that speaks Ollama's protocol and does what it is told, faults included.

For the tests of whoever talks to Ollama: no weights, no GPU, answers in milliseconds, every failure on demand.

In a test's own process:

    async with ScriptedOllama(models=[ScriptedModel(name="llama3.1:8b", text="Paris.")]) as server:
        server.script(model="llama3.1:8b", times=1, fault="status", status=503)
        ...  # talk to server.url
        assert server.requests[-1].body["model"] == "llama3.1:8b"
        assert server.statistics.cancelled == 0

As a process that another program steers over HTTP:

    python -m ai_task_orchestra.testing.scripted_ollama --port 11500 [--script file.yaml]

    GET    /__requests           what was asked so far; DELETE forgets it
    GET    /__statistics         loads, swaps, generations running, completed, cancelled, ...
    POST   /__script             one script or a list of them (see `scripted_models.Script`); DELETE removes all
    POST   /__models             one model or a list of them, added or replaced
    POST   /__refuse             {"seconds": 2}: refuse every connection for so long

Loading, waiting, unloading and keep-alive follow Ollama's rules (see `model_memory`). Not served: create, copy,
delete, push, blobs and the old /api/embeddings.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from ai_task_orchestra.testing import ollama_replies as replies
from ai_task_orchestra.testing.http_exchange import Exchange, Request
from ai_task_orchestra.testing.model_memory import ModelMemory, Statistics, parse_keep_alive
from ai_task_orchestra.testing.scripted_generation import Generation, RequestRefusedError
from ai_task_orchestra.testing.scripted_models import Script, ScriptedModel, ServerSpec, full_name

__all__ = ["RecordedRequest", "Script", "ScriptedModel", "ScriptedOllama", "ServerSpec", "main", "serve"]

_GENERATING = ("generate", "chat", "embed")
_SCRIPTS: TypeAdapter[list[Script]] = TypeAdapter(list[Script])
_MODELS: TypeAdapter[list[ScriptedModel]] = TypeAdapter(list[ScriptedModel])


@dataclass
class RecordedRequest:
    """One request to `/api/...`. `outcome` is "running", then "answered", "fault" or "cancelled" (the client left)."""

    endpoint: str
    model: str
    body: dict[str, Any]
    outcome: str = "running"


_LookUp = Callable[["Exchange", "RecordedRequest"], Awaitable[None]]


@dataclass
class _Steering:
    """A script with its counters."""

    script: Script
    skipped: int = 0
    used: int = 0

    def take(self) -> bool:
        """Whether the script treats this request, which it fits."""
        if self.skipped < self.script.skip:
            self.skipped += 1
            return False
        if self.script.times is not None and self.used >= self.script.times:
            return False
        self.used += 1
        return True


@dataclass
class ScriptedOllama:
    """The server. An asynchronous context manager: listens on `host` inside of it.

    `models` and the keyword arguments are the fields of `ServerSpec`; `spec` gives them all at once.
    """

    models: Iterable[ScriptedModel] = ()
    host: str = "127.0.0.1"
    port: int = 0
    spec: ServerSpec = field(default_factory=ServerSpec)
    requests: list[RecordedRequest] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        models = tuple(self.models) or self.spec.models
        self._models = {model.full_name: model for model in models}
        self._steering = [_Steering(script) for script in self.spec.scripts]
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._background: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ScriptedOllama:
        self._memory = ModelMemory(
            memory_bytes=self.spec.memory_bytes,
            max_loaded_models=self.spec.max_loaded_models,
            max_queue=self.spec.max_queue,
            num_parallel=self.spec.num_parallel,
            keep_alive=parse_keep_alive(self.spec.keep_alive) or 0.0,
        )
        await self._listen()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stop_listening()
        tasks = [*self._connections, *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._memory.close()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://{self.host}:{self.port}"

    @property
    def statistics(self) -> Statistics:
        """Counters since the start."""
        return self._memory.statistics

    def add_model(self, model: ScriptedModel) -> None:
        """Add a model, or replace the one of that name."""
        self._models[model.full_name] = model

    def script(self, script: Script | None = None, **fields: Any) -> None:
        """Say how requests are answered from now on; the latest script that fits wins."""
        self._steering.append(_Steering(script or Script(**fields)))

    def clear_scripts(self) -> None:
        """Back to the models' own answers."""
        self._steering.clear()

    async def refuse(self, seconds: float | None = None) -> None:
        """Refuse new connections: for `seconds`, or until `accept`."""
        self._stop_listening()
        if seconds is not None:
            task = asyncio.create_task(self._accept_after(seconds))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def accept(self) -> None:
        """Take connections again, on the same port."""
        await self._listen()

    async def _accept_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._listen()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, self.host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._connections.add(task)
        exchange = Exchange(reader, writer)
        try:
            request = await exchange.read()
            if request is not None:
                await self._answer_while_connected(exchange, request)
        except asyncio.CancelledError:
            exchange.reset()  # the server stops; swallowed because asyncio logs a cancelled connection as an error
        finally:
            self._connections.discard(task)
            exchange.close()

    async def _answer_while_connected(self, exchange: Exchange, request: Request) -> None:
        """Answer, but stop when the client leaves, as Ollama does."""
        answering = asyncio.create_task(self._answer(exchange, request))
        leaving = asyncio.create_task(exchange.peer_left())
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (answering, leaving):
                task.cancel()
            results = await asyncio.gather(answering, leaving, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, ConnectionError):
                raise result

    async def _answer(self, exchange: Exchange, request: Request) -> None:
        if request.path.startswith("/__"):
            await self._control(exchange, request)
            return
        if request.path == "/":
            await exchange.reply(200, b"Ollama is running", "text/plain; charset=utf-8")
            return
        endpoint = request.path.removeprefix("/api/")
        answer = self._look_ups().get((request.method, endpoint))
        generating = request.method == "POST" and endpoint in _GENERATING
        if endpoint == request.path or not (answer or generating):
            await exchange.reply(404, b"404 page not found", "text/plain")
            return
        try:
            body = request.json() if request.body else {}
            if not isinstance(body, dict):
                raise ValueError("the request is not a JSON object")
        except ValueError as exc:
            await exchange.reply_json(400, {"error": str(exc)})
            return
        record = RecordedRequest(endpoint, str(body.get("model") or body.get("name") or ""), body)
        self.requests.append(record)
        await self._recorded(exchange, record, answer)

    async def _recorded(self, exchange: Exchange, record: RecordedRequest, look_up: _LookUp | None) -> None:
        """Answer by `look_up`, or by a model where that is None."""
        script = self._script_for(record)
        try:
            if look_up is None or (script is not None and script.fault):
                generation = Generation(self._memory, exchange, record.endpoint, record.body, script or Script())
                await generation.run(self._models.get(full_name(record.model)))
                record.outcome = "fault" if generation.failed else "answered"
            else:
                await look_up(exchange, record)
                record.outcome = "answered"
        except (asyncio.CancelledError, ConnectionError):
            record.outcome = "cancelled"
            self.statistics.cancelled += record.endpoint in _GENERATING
            raise
        except RequestRefusedError as exc:
            record.outcome = "fault"
            await exchange.reply_json(exc.status, {"error": exc.message})

    def _script_for(self, record: RecordedRequest) -> Script | None:
        prompt = replies.prompt_text(record.endpoint, record.body)
        for steering in reversed(self._steering):
            if steering.script.fits(record.endpoint, record.model, prompt) and steering.take():
                return steering.script
        return None

    def _look_ups(self) -> Mapping[tuple[str, str], _LookUp]:
        """The endpoints that need no model."""
        return {
            ("GET", "version"): self._version,
            ("GET", "tags"): self._tags,
            ("GET", "ps"): self._ps,
            ("POST", "show"): self._show,
            ("POST", "pull"): self._pull,
        }

    async def _version(self, exchange: Exchange, _: RecordedRequest) -> None:
        await exchange.reply_json(200, {"version": self.spec.version})

    async def _tags(self, exchange: Exchange, _: RecordedRequest) -> None:
        await exchange.reply_json(200, {"models": [replies.tag(model) for model in self._models.values()]})

    async def _ps(self, exchange: Exchange, _: RecordedRequest) -> None:
        await exchange.reply_json(200, {"models": [replies.running(entry) for entry in self._memory.loaded()]})

    async def _show(self, exchange: Exchange, record: RecordedRequest) -> None:
        model = self._models.get(full_name(record.model))
        if model is None:
            raise RequestRefusedError(404, f"model '{record.model}' not found")
        await exchange.reply_json(200, replies.show(model))

    async def _pull(self, exchange: Exchange, record: RecordedRequest) -> None:
        """Known models are "there already"; nothing is ever fetched."""
        model = self._models.get(full_name(record.model))
        lines = [{"status": "pulling manifest"}]
        if model is None:
            lines.append({"error": "pull model manifest: file does not exist"})
        else:
            lines += [{"status": s} for s in ("verifying sha256 digest", "writing manifest", "success")]
        if record.body.get("stream") is False:
            await exchange.reply_json(200 if model else 500, lines[-1])
            return
        await exchange.start(200, "application/x-ndjson")
        for line in lines:
            await exchange.send(json.dumps(line).encode() + b"\n")
        await exchange.finish()

    async def _control(self, exchange: Exchange, request: Request) -> None:
        try:
            value = await self._controlled(request)
        except (ValueError, ValidationError) as exc:
            await exchange.reply_json(422, {"error": str(exc)})
            return
        await exchange.reply_json(404 if value is None else 200, {"error": "unknown"} if value is None else value)

    async def _controlled(self, request: Request) -> Any:
        """Carry out one request of the control endpoints; None: there is no such endpoint."""
        match request.method, request.path:
            case "GET", "/__requests":
                return [asdict(record) for record in self.requests]
            case "DELETE", "/__requests":
                self.requests.clear()
            case "GET", "/__statistics":
                return asdict(self.statistics)
            case "POST", "/__script":
                for script in _SCRIPTS.validate_python(_as_list(request.json())):
                    self.script(script)
            case "DELETE", "/__script":
                self.clear_scripts()
            case "POST", "/__models":
                for model in _MODELS.validate_python(_as_list(request.json())):
                    self.add_model(model)
            case "POST", "/__refuse":
                await self.refuse(float(request.json()["seconds"]))
            case _:
                return None
        return {"ok": True}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


async def serve(spec: ServerSpec, *, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with ScriptedOllama(spec=spec, host=host, port=port) as server:
        sys.stdout.write(f"listening on {server.url}\n")
        sys.stdout.flush()
        await stop.wait()


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns 0, or 2 for a script file that can't be used."""
    parser = argparse.ArgumentParser(prog="scripted_ollama", description="A scripted server of Ollama's protocol.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one and prints it")
    parser.add_argument("--script", type=Path, help="JSON or YAML: models, scripts, memory_bytes, ...")
    options = parser.parse_args(argv)
    try:
        spec = ServerSpec.model_validate(yaml.safe_load(options.script.read_text()) if options.script else {})
    except (OSError, yaml.YAMLError, ValidationError) as exc:
        sys.stderr.write(f"{options.script}: {exc}\n")
        return 2
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(spec, host=options.host, port=options.port))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
