"""The routes of the protocol."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from ai_task_orchestra.model_backend import cards, embedding, generation
from ai_task_orchestra.model_backend.answers import Answer, as_error, joined
from ai_task_orchestra.model_backend.guard import LocalOnly, read_body
from ai_task_orchestra.model_backend.installed import Shelf
from ai_task_orchestra.model_backend.protocol import (
    ChatRequest,
    EmbeddingsRequest,
    EmbedRequest,
    GenerateRequest,
    ProtocolError,
    PullRequest,
    ShowRequest,
    parse,
)
from ai_task_orchestra.model_backend.pull import pull
from ai_task_orchestra.model_backend.runner import RunnerProcess
from ai_task_orchestra.model_backend.scheduler import Scheduler

PROTOCOL_VERSION = "0.33.0"
"""The Ollama release whose behaviour is followed."""

READING = ["GET", "HEAD"]


def create_app(scheduler: Scheduler[RunnerProcess], shelf: Shelf, install: Callable[[Path], None]) -> FastAPI:
    """The application. `install` puts a pulled model file on the shelf."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(LocalOnly)
    app.add_exception_handler(ProtocolError, _error)
    app.add_exception_handler(HTTPException, _error)
    _add_reading(app, scheduler, shelf)
    _add_working(app, scheduler, shelf)

    @app.post("/api/pull")
    async def pull_(request: Request) -> Answer:
        body = parse(PullRequest, await read_body(request))
        return Answer(pull(shelf, body.model_name, install), stream=body.stream is not False)

    return app


def _add_reading(app: FastAPI, scheduler: Scheduler[RunnerProcess], shelf: Shelf) -> None:
    @app.api_route("/", methods=READING)
    async def root() -> PlainTextResponse:
        return PlainTextResponse("Ollama is running (embedded backend of AI Task Orchestra)")

    @app.api_route("/api/version", methods=READING)
    async def version() -> dict[str, str]:
        return {"version": f"{PROTOCOL_VERSION}-embedded"}

    @app.api_route("/api/tags", methods=READING)
    async def tags() -> dict[str, Any]:
        return {"models": [cards.tag(model) for model in shelf.all()]}

    @app.api_route("/api/ps", methods=READING)
    async def ps() -> dict[str, Any]:
        return {"models": [cards.loaded(resident) for resident in scheduler.loaded()]}

    @app.post("/api/show")
    async def show(request: Request) -> dict[str, Any]:
        return cards.card(shelf.find(parse(ShowRequest, await read_body(request)).model_name))


def _add_working(app: FastAPI, scheduler: Scheduler[RunnerProcess], shelf: Shelf) -> None:
    @app.post("/api/generate")
    async def generate(request: Request) -> Answer:
        body = parse(GenerateRequest, await read_body(request))
        records = generation.generate(scheduler, shelf.find(body.model_name), body)
        merge = joined(generation.generated, lambda record: record["response"])
        return Answer(records, stream=body.stream is not False, merge=merge)

    @app.post("/api/chat")
    async def chat(request: Request) -> Answer:
        body = parse(ChatRequest, await read_body(request))
        records = generation.chat(scheduler, shelf.find(body.model_name), body)
        merge = joined(generation.chatted, lambda record: record["message"]["content"])
        return Answer(records, stream=body.stream is not False, merge=merge)

    @app.post("/api/embed")
    async def embed(request: Request) -> Answer:
        body = parse(EmbedRequest, await read_body(request))
        return Answer(embedding.embed(scheduler, shelf.find(body.model_name), body), stream=False)

    @app.post("/api/embeddings")
    async def embeddings(request: Request) -> Answer:
        body = parse(EmbeddingsRequest, await read_body(request))
        return Answer(embedding.embeddings(scheduler, shelf.find(body.model_name), body), stream=False)


async def _error(_: Request, exc: Exception) -> JSONResponse:
    """Every error in the protocol's shape; Ollama's routes that are not here (create, copy, push, ...) are 404."""
    if isinstance(exc, HTTPException):
        return JSONResponse({"error": f"{exc.detail} (embedded backend)"}, exc.status_code)
    error = as_error(exc)
    return JSONResponse({"error": error.message}, error.status)
