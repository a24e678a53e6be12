"""`orchestra up`: what it starts, what it tells, what it keeps to itself, and how it ends."""

from __future__ import annotations

import json
import shutil
import signal
import stat
import subprocess
import uuid
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest

from ai_task_orchestra.stack.postgres import EmbeddedPostgres
from tests.acceptance.conftest import ORCHESTRA, ROOT, RunningStack, environment, family, running
from tests.support import servers
from tests.support.waiting import wait_until_sync

RUN = ["run", "ollama-inference", "-p", "model=llama3.1:8b", "-p", "prompt=What is a qubit?"]


def orchestra(env: dict[str, str], *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """One call of the command line, in the environment of a stack."""
    return subprocess.run([ORCHESTRA, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


def child(stack: RunningStack, *words: str) -> psutil.Process:
    """The child of `up` whose command line has these words."""
    for process in psutil.Process(stack.process.pid).children():
        if all(word in process.cmdline() for word in words):
            return process
    raise AssertionError(f"up has no child {words}")


def test_secrets_are_files_that_only_their_owner_reads(stack: RunningStack) -> None:
    for name in ("api-key", "prefect-auth", "database-url", "postgres-password"):
        assert stat.S_IMODE((stack.home / name).stat().st_mode) == 0o600, name


def test_no_secret_is_printed_or_logged(stack: RunningStack) -> None:
    secrets = [(stack.home / name).read_text().strip() for name in ("api-key", "prefect-auth", "postgres-password")]
    secrets.append(stack.prefect_auth.partition(":")[2])
    stack.api.get("/tasks", headers={"X-API-Key": secrets[0]})
    texts = {"up": stack.output} | {log.name: log.read_text() for log in (stack.home / "logs").iterdir()}
    for name, text in texts.items():
        assert not [secret[:4] for secret in secrets if secret in text], f"a secret in {name}"


def test_the_worker_knows_neither_the_database_nor_a_key(stack: RunningStack) -> None:
    known = child(stack, "worker").environ()
    assert "ORCHESTRA_DATABASE_URL" not in known
    assert "ORCHESTRA_API_KEY" not in known
    password = (stack.home / "postgres-password").read_text().strip()
    assert not [name for name, value in known.items() if password in value]


def test_prefect_is_ours_alone_and_asks_for_its_password(stack: RunningStack) -> None:
    assert httpx.post(f"{stack.prefect_api_url}/flows/count", json={}).status_code == 401
    assert stack.prefect.post("/flows/count", json={}).status_code == 200
    settings = stack.prefect.get(stack.prefect_api_url.removesuffix("/api") + "/ui-settings").json()
    assert settings["auth"] == "BASIC"
    assert child(stack, "prefect", "server").environ()["PREFECT_HOME"] == str(stack.home / "prefect")


def test_a_second_up_on_the_same_home_is_refused(stack: RunningStack) -> None:
    done = orchestra(stack.environment, "up")
    assert done.returncode == 2
    assert f"process {stack.process.pid}" in done.stderr
    assert "ORCHESTRA_HOME" in done.stderr


def test_a_taken_port_is_told_before_anything_starts(stack: RunningStack) -> None:
    with servers.open_folder() as folder:
        taken = environment(folder / "home", ORCHESTRA_PORT=stack.environment["ORCHESTRA_PORT"])
        done = orchestra(taken, "up")
        assert done.returncode == 2
        assert "ORCHESTRA_PORT" in done.stderr
        assert not (folder / "home" / "postgres").exists()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_curl_lines_work_when_pasted(stack: RunningStack) -> None:
    post, get = [line.strip() for line in stack.output.splitlines() if line.strip().startswith("curl")]
    created = json.loads(subprocess.run(["/bin/sh", "-c", post], capture_output=True, text=True, check=True).stdout)
    listed = json.loads(subprocess.run(["/bin/sh", "-c", get], capture_output=True, text=True, check=True).stdout)
    assert created["id"] in [task["id"] for task in listed]
    assert stack.wait_for(created["id"])["result"] == {"output": "Qubits can be both."}


def test_the_command_line_runs_shows_and_logs_a_task(stack: RunningStack) -> None:
    env = {**stack.environment, "ORCHESTRA_PREFECT_PORT": "1"}
    done = orchestra(env, *RUN, "--wait")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Qubits can be both.\n", "")

    task_id = orchestra(env, *RUN, "--priority", "9").stdout.strip()
    stack.wait_for(task_id)
    shown = json.loads(orchestra(env, "show", task_id, "--json").stdout)
    assert (shown["status"], shown["priority"]) == ("completed", 9)
    assert task_id in orchestra(env, "list").stdout
    assert "ollama-inference" in orchestra(env, "templates").stdout
    refused = orchestra(env, "cancel", task_id)
    assert refused.returncode == 4
    wait_until_sync(lambda: orchestra(env, "logs", task_id).stdout, timeout=20, description="the task's log is there")


def test_a_failed_task_is_exit_code_1(stack: RunningStack) -> None:
    done = orchestra(stack.environment, "run", "ollama-inference", "-p", "model=none", "-p", "prompt=x", "--wait")
    assert done.returncode == 1
    assert "none" in done.stderr


def test_keys_are_made_listed_and_revoked(stack: RunningStack) -> None:
    made = orchestra(stack.environment, "keys", "create", "for-a-test")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()

    def code() -> int:
        return stack.api.get("/templates", headers={"X-API-Key": key}).status_code

    assert code() == 200
    listed = orchestra(stack.environment, "keys", "list").stdout
    assert "for-a-test" in listed
    assert key not in listed
    assert orchestra(stack.environment, "keys", "revoke", "for-a-test").returncode == 0
    wait_until_sync(lambda: code() == 401, timeout=10, description="the revoked key is refused")


def test_the_doctor_finds_nothing_open(stack: RunningStack) -> None:
    done = orchestra(stack.environment, "doctor", "--json")
    found = json.loads(done.stdout)
    # The scripted model server names a version of its own choice.
    problems = [finding for finding in found if finding["verdict"] == "problem" and finding["check"] != "models"]
    assert problems == []
    said = "\n".join(finding["says"] for finding in found)
    assert f"{stack.prefect_api_url} answers nobody without its password" in said
    assert "answers nobody without a key" in said


def test_an_api_that_was_killed_comes_back_and_tasks_run(stack: RunningStack) -> None:
    child(stack, "api").kill()
    wait_until_sync(lambda: "api is back" in stack.output, timeout=60, description="up says that the API is back")
    assert "api was ended by SIGKILL; starting it again in 0.5 s" in stack.output
    task_id = stack.submit("ollama-inference", {"model": "llama3.1:8b", "prompt": "Still there?"})
    assert stack.wait_for(task_id)["status"] == "completed"


def test_up_that_was_killed_leaves_nothing_and_starts_again(ollama: str) -> None:
    with servers.open_folder() as home:
        env = environment(home, OLLAMA_HOST=ollama)
        with running(env, ollama) as first:
            task_id = first.submit("ollama-inference", {"model": "llama3.1:8b", "prompt": "Kept?"})
            first.wait_for(task_id)
            members = family(first.process.pid)
            assert len(members) > 5
            first.process.kill()
            first.process.wait()
            _, left = psutil.wait_procs(members, timeout=15)
            assert not left
        with running(env, ollama) as second:
            assert second.api.get(f"/tasks/{task_id}").json()["status"] == "completed"
            second.process.send_signal(signal.SIGINT)
            second.process.send_signal(signal.SIGTERM)
            assert second.process.wait(15) == 0
        assert not (home / "database-url").exists()


def test_a_signal_while_starting_ends_it_in_order(ollama: str) -> None:
    with servers.open_folder() as home:
        env = environment(home, OLLAMA_HOST=ollama)
        log = home / "up.log"
        with servers.process([str(ORCHESTRA), "up"], env=env, log=log, cwd=ROOT) as up:
            wait_until_sync(lambda: "PostgreSQL" in log.read_text(), description="PostgreSQL is up")
            members = family(up.pid)
            up.send_signal(signal.SIGTERM)
            assert up.wait(15) == 0
            _, left = psutil.wait_procs(members, timeout=1)
            assert not left


async def test_a_database_and_a_prefect_server_of_the_operators_are_used(
    ollama: str, postgres_server: EmbeddedPostgres
) -> None:
    prefects = await servers.new_database(postgres_server)
    missing = postgres_server.url(f"up_{uuid.uuid4().hex[:8]}")  # `up` creates it
    with servers.prefect_server(postgres_server, prefects) as prefect_url, servers.open_folder() as home:
        given = {"ORCHESTRA_DATABASE_URL": missing, "PREFECT_API_URL": prefect_url, "OLLAMA_HOST": ollama}
        env, log = environment(home, **given), home / "up.log"
        with servers.process([str(ORCHESTRA), "up"], env=env, log=log, cwd=ROOT) as up:
            wait_until_sync(
                lambda: up.poll() is not None or "curl" in log.read_text(), timeout=120, description="the stack is up"
            )
            assert up.poll() is None, log.read_text()
            done = orchestra(env, *RUN, "--wait", "--json")
            assert json.loads(done.stdout)["flow_run_url"].startswith(prefect_url.removesuffix("/api")), done.stderr
            commands = [" ".join(process.cmdline()) for process in psutil.Process(up.pid).children()]
            assert len(commands) == 2, commands
        assert up.returncode == 0
        assert not (home / "postgres").exists()
        assert not (home / "prefect-auth").exists()
    connection = await asyncpg.connect(missing)
    assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") > 0
    await connection.close()


def test_the_demo_answers_with_a_real_small_model() -> None:
    with servers.open_folder() as home:
        nowhere = f"http://127.0.0.1:{servers.free_port()}"
        done = orchestra(environment(home, OLLAMA_HOST=nowhere), "demo", timeout=170)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Paris" in done.stdout
        assert "smollm2:135m" in done.stdout
        assert "inference_time_seconds" in done.stdout
        assert "/runs/flow-run/" in done.stdout


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = orchestra(environment(tmp_path / "file" / "home"), "up")
    assert done.returncode == 2
    assert "ORCHESTRA_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_that_is_not_postgresql_is_refused(tmp_path: Path) -> None:
    done = orchestra(environment(tmp_path, ORCHESTRA_DATABASE_URL="sqlite:///x.db"), "up")
    assert done.returncode == 2
    assert "PostgreSQL" in done.stderr
