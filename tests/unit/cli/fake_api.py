"""A loopback server that answers like the REST API, from a script; it remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "the-key"
CREATED = "2026-11-24T10:30:00.000000Z"


def task(status: str = "queued", **more: Any) -> dict[str, Any]:
    return {
        "id": "t1",
        "status": status,
        "priority": 5,
        "created_at": CREATED,
        "template": "greet",
        "parameters": {"name": "Ada"},
        "depends_on": [],
        **more,
    }


TEMPLATE = {
    "name": "greet",
    "description": "Says hello",
    "parameters": [
        {"name": name, "type": kind, "required": name == "name", "description": f"The {name}"}
        for name, kind in (
            ("name", "string"),
            ("times", "integer"),
            ("warmth", "number"),
            ("loud", "boolean"),
            ("others", "array"),
            ("more", "object"),
        )
    ],
    "steps": [{"type": "wait", "seconds": 1}, {"type": "ollama_generate", "name": "say"}],
}


@dataclass
class FakeApi:
    """`answers`: (method, path) → answers in turn, the last one again and again; each a status and a body."""

    key: str | None = KEY
    url: str = ""
    answers: dict[tuple[str, str], list[tuple[int, Any]]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, list[str]], Any]] = field(default_factory=list)

    def on(self, method: str, path: str, *answers: tuple[int, Any]) -> None:
        self.answers[(method, path)] = list(answers)

    def answer(self, method: str, target: str, key: str | None, body: Any) -> tuple[int, Any]:
        parts = urlsplit(target)
        path = parts.path.removeprefix("/api/v1")
        self.asked.append((method, path, parse_qs(parts.query), body))
        if self.key is not None and key != self.key:
            return 401, {"detail": "A valid API key is needed in the header X-API-Key.", "code": "unauthenticated"}
        turns = self.answers.get((method, path))
        if turns is None:
            return 404, {"detail": f"There is nothing at {path}.", "code": "not_found"}
        return turns.pop(0) if len(turns) > 1 else turns[0]


@contextlib.contextmanager
def fake_api(key: str | None = KEY) -> Iterator[FakeApi]:
    """A served `FakeApi`; without a key it asks for none."""
    api = FakeApi(key)

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, answer = api.answer(self.command, self.path, self.headers.get("X-API-Key"), body)
            raw = answer if isinstance(answer, bytes) else b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            """Tests read no access log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
