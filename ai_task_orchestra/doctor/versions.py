"""Versions with known holes: the lowest that we know none of, for what we import, call and talk to."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from ai_task_orchestra.doctor.findings import Finding, note, ok, or_ok, problem

Numbers = tuple[int, ...]

#: Python package -> (lowest version, one of the holes below it).
PACKAGES: Final[Mapping[str, tuple[str, str]]] = {
    "prefect": ("3.8.3", "CVE-2026-7722, an address that ends in `health` needs no password"),
    "starlette": ("1.0.1", "CVE-2026-48710, the Host header changes the path that is checked"),
    "gitpython": ("3.2.1", "GHSA-w8jc-g24h-crhw and many ways to smuggle options into git"),
    "jinja2": ("3.1.6", "CVE-2025-27516, the sandbox can be left"),
    "h11": ("0.16.0", "CVE-2025-43859, broken chunks hide a second request"),
    "python-multipart": ("0.0.18", "CVE-2024-53981, a form that takes the processor for ever"),
}
#: git has got the mend of CVE-2025-48384 in each of these lines, and has it in every later one.
GIT_LINES: Final[tuple[Numbers, ...]] = (
    (2, 43, 7), (2, 44, 4), (2, 45, 4), (2, 46, 4), (2, 47, 3), (2, 48, 2), (2, 49, 1), (2, 50, 1),
)  # fmt: skip
OLLAMA: Final = "0.35.0"
_SECONDS: Final = 10.0


def check_versions() -> list[Finding]:
    """The packages of this environment, and the git that is found first."""
    packages = [found for name, (floor, hole) in PACKAGES.items() for found in _package(name, floor, hole)]
    return [
        *or_ok("packages", packages, "no Python package is of a version with a hole that we know"),
        check_git(_git()),
    ]


def numbers(text: str) -> Numbers:
    """The numbers at the beginning of a version: `2.39.5-0+deb12u3` is (2, 39, 5)."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _package(name: str, floor: str, hole: str) -> list[Finding]:
    try:
        present = version(name)
    except PackageNotFoundError:
        return []
    if numbers(present) >= numbers(floor):
        return []
    return [problem("packages", f"{name} {present} has a hole ({hole})", f"pip install '{name}>={floor}'")]


def check_git(said: str | None) -> Finding:
    """`said`: what `git --version` prints, None if there is no git."""
    if said is None:
        return note("git", "there is no git here: steps that clone will fail", "install git")
    found = numbers(said.removeprefix("git version "))
    line = next((line for line in GIT_LINES if line[:2] == found[:2]), GIT_LINES[0])
    if found >= line or found > GIT_LINES[-1]:
        return ok("git", f"git {_dotted(found)} is of a version without a hole that we know")
    return note(
        "git",
        f"git {_dotted(found)} is older than {_dotted(line)}, and so has CVE-2025-48384 unless your distribution has "
        "mended it; it concerns submodules, which we do not clone",
        f"update git with your system's updates, or to {_dotted(line)}",
    )


def check_ollama(present: str) -> Finding:
    """`present`: the version that the model server names."""
    if "embedded" in present:
        return ok("models", "the model server is the embedded one, which listens on this machine only")
    if numbers(present) >= numbers(OLLAMA):
        return ok("models", f"Ollama {present} is of a version without a hole that we know")
    return problem(
        "models",
        f"Ollama {present} has a hole (CVE-2026-103663, a model's name that leaves its folder and runs programs)",
        f"update Ollama to {OLLAMA} or later",
    )


def _git() -> str | None:
    try:
        done = subprocess.run(["git", "--version"], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _dotted(version_: Numbers) -> str:
    return ".".join(str(part) for part in version_)
