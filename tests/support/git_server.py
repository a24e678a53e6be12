"""A git server on loopback, as real as needed: git's own upload-pack behind HTTP, with TLS and a password if wanted."""

from __future__ import annotations

import base64
import contextlib
import gzip
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_SERVICE = "git-upload-pack"


class GitServer(ThreadingHTTPServer):
    """Serves one repository at every path that ends in `.git`; remembers paths and `Authorization` headers."""

    daemon_threads = True

    def __init__(self, repository: Path, login: tuple[str, str] | None, certificate: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository = repository
        self.expected = f"Basic {base64.b64encode(':'.join(login).encode()).decode()}" if login else None
        self.asked: list[tuple[str, str | None]] = []
        self.scheme = "http"
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"

    def url(self, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.server_address[1]}/x.git"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: GitServer

    def do_GET(self) -> None:
        if self._admitted():
            head = f"# service={_SERVICE}\n"
            line = f"{len(head) + 4:04x}{head}0000".encode()
            self._answer("advertisement", line + self._git("--advertise-refs"))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self._admitted():
            self._answer("result", self._git(body=body))

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def _admitted(self) -> bool:
        authorization = self.headers.get("Authorization")
        self.server.asked.append((urlsplit(self.path).path, authorization))
        if self.server.expected in (None, authorization):
            return True
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="x"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def _git(self, *options: str, body: bytes = b"") -> bytes:
        argv = ["git", "-c", "safe.directory=*", "-c", "uploadpack.allowAnySHA1InWant=true", "upload-pack"]
        done = subprocess.run(
            [*argv, "--stateless-rpc", *options, str(self.server.repository)],
            input=body,
            capture_output=True,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "GIT_PROTOCOL": self.headers.get("Git-Protocol", "")},
        )
        return done.stdout

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"application/x-{_SERVICE}-{kind}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def git_server(
    repository: Path, *, login: tuple[str, str] | None = None, certificate: Path | None = None
) -> Iterator[GitServer]:
    """A running server."""
    with GitServer(repository, login, certificate) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
