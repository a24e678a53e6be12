"""Secrets of an installation stay where they belong, whatever tasks do: searched for everywhere afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from ai_task_orchestra.protocol import REPORT_ARTIFACT_TYPE
from tests.acceptance.conftest import RunningStack, environment, running
from tests.support import servers
from tests.support.git_server import git_server
from tests.support.steps import alive, new_mark, repository
from tests.support.tls import certificate
from tests.support.waiting import wait_until_sync

# Takes what it can get, and says it loudly.
THIEF = """\
import glob, os, sys, time
loot = [repr(dict(os.environ))]
for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline") + glob.glob(sys.argv[1] + "/*"):
    try:
        loot.append(path + open(path, "rb").read(100_000).decode(errors="replace"))
    except OSError:
        pass
text = " ".join(loot).replace("\\0", " ")
print(text[:900_000])
if sys.argv[2] == "fail":
    print(text[-250:], file=sys.stderr)
    sys.exit(3)
while not os.path.exists("told") and sys.argv[2] == "stay":
    time.sleep(0.05)
"""

# Asks every server of the installation for something, as nobody.
STRANGER = """\
import json, socket, struct, sys, urllib.error, urllib.request
ports = json.loads(sys.argv[1])
def ask(port, path, **options):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", **options)
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as exc:
        return exc.code
def database(name):
    with socket.create_connection(("127.0.0.1", ports["database"]), 20) as sock:
        body = struct.pack("!i", 196608) + b"user\\0orchestra\\0database\\0" + name + b"\\0\\0"
        sock.sendall(struct.pack("!i", len(body) + 4) + body)
        kind, _, method = struct.unpack("!cii", sock.recv(9))
        return "asks for a password" if (kind, method) == (b"R", 10) else "lets in"
def events(text):
    with socket.create_connection(("127.0.0.1", ports["prefect"]), 20) as sock:
        lines = ["GET /api/events/out HTTP/1.1", "Host: 127.0.0.1", "Connection: Upgrade", "Upgrade: websocket",
            "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1Ng==",
            "Sec-WebSocket-Protocol: prefect"]
        sock.sendall("".join(line + "\\r\\n" for line in [*lines, ""]).encode())
        head = sock.recv(4096)
        sock.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)  # one masked text frame
        answer = head.partition(b"\\r\\n\\r\\n")[2] + sock.recv(4096)
        return "closed" if b" 101 " in head and answer[:1] in (b"\\x88", b"") else repr(head + answer)
json_body = {"data": b"{}", "headers": {"Content-Type": "application/json"}}
print(json.dumps({
    "tasks": ask(ports["api"], "/api/v1/tasks"),
    "runs": ask(ports["prefect"], "/api/flow_runs/filter", **json_body),
    "variables": ask(ports["prefect"], "/api/variables/filter", **json_body),
    "events": events(b'{"type": "auth", "token": "wrong"}'),
    "orchestra": database(b"orchestra"),
    "prefect": database(b"prefect"),
    "models": ask(ports["models"], "/api/tags"),
}))
"""


@dataclass
class Installation:
    """A running stack full of secrets. `values` are all of them, by what they are."""

    stack: RunningStack
    repository: str
    values: dict[str, str]
    answers: list[str] = field(default_factory=list)

    def run(self, script: str, *args: str, status: str = "completed", template: str = "git-script", **more) -> dict:
        """The finished task; everything that the API says of it is kept."""
        parameters = {"repo_url": self.repository, "script_path": script, "output_path": f"{secrets.token_hex(4)}.txt"}
        parameters |= {"script_args": list(args)} | more
        task_id = self.stack.submit(template, parameters)
        task = self.stack.wait_for(task_id, status, timeout=100)
        self.answers += [json.dumps(task), self.stack.api.get(f"/tasks/{task_id}/logs").text]
        return task


@pytest.fixture(scope="module")
def installation(ollama: str) -> Iterator[Installation]:
    canaries = {name: f"canary-{secrets.token_urlsafe(24)}" for name in ("database", "git", "operator's key", "cloud")}
    with contextlib.ExitStack() as stack:
        home, elsewhere = (stack.enter_context(servers.open_folder()) for _ in range(2))
        (home / "postgres-password").write_text(canaries["database"])
        (home / "git-credentials").write_text(f"machine localhost login deploy password {canaries['git']}")
        for name in ("postgres-password", "git-credentials"):
            (home / name).chmod(0o600)
        trusted = certificate(elsewhere, "localhost")
        trusted.chmod(0o644)
        repository(elsewhere / "source", {"thief.py": THIEF, "stranger.py": STRANGER})
        login = ("deploy", canaries["git"])
        server = stack.enter_context(git_server(elsewhere / "source", login=login, certificate=trusted))
        env = environment(home, OLLAMA_HOST=ollama, SSL_CERT_FILE=str(trusted)) | {
            "ORCHESTRA_API_KEY": canaries["operator's key"],
            "AWS_SECRET_ACCESS_KEY": canaries["cloud"],
            "ORCHESTRA_WORKER_GRACE_SECONDS": "2",
        }
        up = stack.enter_context(running(env, ollama))
        values = canaries | {
            "key file": (home / "api-key").read_text().strip(),
            "Prefect's password": up.prefect_auth.partition(":")[2],
        }
        yield Installation(up, server.url("localhost"), values)


def test_a_script_with_network_meets_locked_doors(installation: Installation) -> None:
    stack = installation.stack
    ports = {
        "api": int(stack.environment["ORCHESTRA_PORT"]),
        "prefect": int(stack.environment["ORCHESTRA_PREFECT_PORT"]),
        "database": urlsplit((stack.home / "database-url").read_text().strip()).port,
        "models": urlsplit(stack.ollama).port,
    }
    task = installation.run("stranger.py", json.dumps(ports))

    assert json.loads(task["result"]["output"]) == {
        "tasks": 401,
        "runs": 401,
        "variables": 401,
        "events": "closed",
        "orchestra": "asks for a password",
        "prefect": "asks for a password",
        "models": 200,  # the one thing that it is given network for
    }
    assert (
        "ended with exit code 1"
        in installation.run("stranger.py", json.dumps(ports), status="failed", network=False)["error"]["message"]
    )


def task_isolation(stack: RunningStack, flow_run_id: str) -> int:
    """The level in the report that the attempt left in Prefect."""
    wanted = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}, "type": {"any_": [REPORT_ARTIFACT_TYPE]}}}
    (report,) = stack.prefect.post("/artifacts/filter", json=wanted).json()
    return (
        json.loads(report["data"])["isolation_level"]
        if isinstance(report["data"], str)
        else report["data"]["isolation_level"]
    )


def test_no_secret_is_found_anywhere(installation: Installation) -> None:
    """After tasks that steal, fail and are refused: in files, rows, answers, command lines, environments of scripts."""
    stack, mark = installation.stack, new_mark()
    home = str(stack.home)
    installation.run("thief.py", home, "end")
    installation.run("thief.py", home, "fail", status="failed")
    installation.run("missing.py", status="failed")
    installation.run("thief.py", branch="no-such-branch", status="failed")
    refused = stack.api.post("/tasks", json={"template": "git-script", "parameters": {"repo_url": 7}})
    wrong = httpx.get(f"{stack.api.base_url}tasks", headers={"X-API-Key": "wrong"})
    installation.answers += [refused.text, wrong.text, stack.output]
    task_id = stack.submit(
        "git-script",
        {"repo_url": installation.repository, "script_path": "thief.py", "output_path": "x.txt"}
        | {"script_args": [home, "stay", mark]},
    )
    try:
        running_script = wait_until_sync(lambda: alive(mark), timeout=60, description="the script runs")
        environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in running_script]
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    finally:
        stack.api.delete(f"/tasks/{task_id}")
    stack.wait_for(task_id, "cancelled")

    forms = {name: value.encode() for name, value in installation.values.items()}
    places = {
        "answers": [text.encode() for text in installation.answers],
        "environments of scripts": environments,
        "command lines": lines,
        "files": list(_files(stack.home)),
        "rows": asyncio.run(_rows((stack.home / "database-url").read_text().strip())),
    }
    assert all(places.values())
    found = {
        (name, place)
        for place, contents in places.items()
        for name, value in forms.items()
        if any(value in content for content in contents)
    }
    assert found == set()


def _files(home: Path) -> Iterator[bytes]:
    """Everything below the home but the files that the secrets are kept in; the database's own files, too."""
    kept = {"api-key", "prefect-auth", "postgres-password", "database-url", "git-credentials"}
    for folder, _, names in os.walk(home):
        for name in names:
            path = Path(folder, name)
            if (path.parent, path.is_file()) != (home, True) or name not in kept:
                with contextlib.suppress(OSError):
                    yield path.read_bytes()


async def _rows(url: str) -> list[bytes]:
    """Every row of every table of both databases, as text."""
    rows: list[bytes] = []
    for database in ("orchestra", "prefect"):
        connection = await asyncpg.connect(urlsplit(url)._replace(path=f"/{database}").geturl())
        try:
            tables = await connection.fetch("SELECT schemaname, tablename FROM pg_tables WHERE schemaname = 'public'")
            for schema, table in tables:
                found = await connection.fetch(f'SELECT t::text AS line FROM "{schema}"."{table}" t')  # noqa: S608
                rows += [row["line"].encode() for row in found]
        finally:
            await connection.close()
    return rows
