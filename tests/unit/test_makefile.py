"""The Makefile's targets: what they would run, without running it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A make of its own, also where the tests run below `make test`."""
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *arguments], cwd=folder, env=env, capture_output=True, text=True)


def would_run(folder: Path, *arguments: str) -> list[str]:
    done = make(folder, "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What make looks at, without a `.venv`."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def stamp(checkout: Path, target: str) -> Path:
    """The stamp that a target's installation ends with."""
    line = next(line for line in would_run(checkout, target) if line.startswith("touch "))
    path = checkout / line.split()[1]
    path.parent.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize(("target", "lock"), [("up", "run-embedded"), ("demo", "run-embedded"), ("test", "dev")])
def test_a_first_call_installs_the_locked_requirements_with_their_hashes(
    checkout: Path, target: str, lock: str
) -> None:
    commands = would_run(checkout, target)
    assert any("venv --clear .venv" in command for command in commands)
    assert any(f"--require-hashes --requirement requirements/{lock}.txt" in command for command in commands)
    assert any("--no-deps --no-build-isolation --editable ." in command for command in commands)


def test_a_second_call_installs_nothing(checkout: Path) -> None:
    stamp(checkout, "up").touch()
    assert would_run(checkout, "up") == ["exec .venv/bin/orchestra up"]


def test_a_changed_lock_file_installs_again(checkout: Path) -> None:
    stamp(checkout, "up").touch()
    with (checkout / "requirements" / "run-embedded.txt").open("a") as lock:
        lock.write("# changed\n")
    assert any("--require-hashes" in command for command in would_run(checkout, "up"))


def test_the_development_set_is_enough_to_start_the_stack(checkout: Path) -> None:
    touched = [line.split()[1] for line in would_run(checkout, "test") if line.startswith("touch ")]
    for path in touched:
        (checkout / path).parent.mkdir(exist_ok=True)
        (checkout / path).touch()
    assert would_run(checkout, "up") == ["exec .venv/bin/orchestra up"]


def test_test_runs_pytest_last_and_check_runs_four_tools(checkout: Path) -> None:
    stamp(checkout, "test").touch()
    assert would_run(checkout, "test", "ARGS=-k x") == [".venv/bin/python -m pytest -k x"]
    assert [line.split("/")[-1].split()[0] for line in would_run(checkout, "check")] == [
        "ruff",
        "ruff",
        "mypy",
        "lint-imports",
    ]


def test_histories_are_chosen_by_number_or_by_seed(checkout: Path) -> None:
    stamp(checkout, "histories").touch()
    run = ".venv/bin/python -m tests.histories"
    assert [line.split() for line in would_run(checkout, "histories", "SEEDS=20")] == [f"{run} --count 20".split()]
    assert [line.split() for line in would_run(checkout, "histories", "SEED=7")] == [f"{run} --seed 7".split()]


def test_lock_compiles_the_three_files_each_held_to_the_one_before(checkout: Path) -> None:
    stamp(checkout, "lock").touch()
    common = (
        ".venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url "
        "--no-header pyproject.toml"
    )
    assert would_run(checkout, "lock") == [
        f"{common} --extra build -o requirements/run.txt",
        f"{common} --extra build --extra embedded-model -c requirements/run.txt -o requirements/run-embedded.txt",
        f"{common} --all-extras -c requirements/run-embedded.txt -o requirements/dev.txt",
    ]


def test_an_old_python_is_refused_with_the_way_out(checkout: Path) -> None:
    old = checkout / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(checkout, "up", f"PYTHON={old}")
    assert done.returncode == 2
    assert "make PYTHON=python3.12 up" in done.stderr


def test_a_python_without_venv_is_refused_with_the_package_to_install(checkout: Path) -> None:
    slim = checkout / "python-slim"
    slim.write_text('#!/bin/sh\ncase "$2" in *venv*) exit 1;; esac\n')
    slim.chmod(0o755)
    done = make(checkout, "up", f"PYTHON={slim}")
    assert done.returncode == 2
    assert "python3-venv" in done.stderr


def test_the_ci_script_is_valid_shell_and_ends_with_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
    assert script.read_text().splitlines()[-1] == "exec make test"


def test_lock_files_name_no_index() -> None:
    for lock in (ROOT / "requirements").glob("*.txt"):
        assert "://" not in lock.read_text(), lock.name
