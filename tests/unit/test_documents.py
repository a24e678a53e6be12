"""What the documents name must exist: files, make targets, settings, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ai_task_orchestra.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
FOREIGN_VARIABLES = {"PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_API_DATABASE_CONNECTION_URL", "OLLAMA_HOST"}


def code_spans(text: str) -> list[str]:
    """Inline code and the lines of code blocks."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return inline + [line for block in blocks for line in block.splitlines()]


def variable_names() -> set[str]:
    names = {f"ORCHESTRA_{name.upper()}" for name, field in Settings.model_fields.items() if not field.validation_alias}
    return names | FOREIGN_VARIABLES


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    missing = [t for t in targets if "://" not in t and not (document.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_that_are_named_are_real(document: Path) -> None:
    named = set(re.findall(r"\bORCHESTRA_[A-Z_]+[A-Z]\b", document.read_text()))
    assert named <= variable_names()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_that_are_named_exist(document: Path) -> None:
    named = {m for span in code_spans(document.read_text()) for m in re.findall(r"^\s*make (\w+)", span)}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_are_named_exist(document: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text())
    missing = [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]
    assert missing == []


def test_every_row_of_the_fault_matrix_that_is_promised_is_listed() -> None:
    listed = re.findall(r"^\| F(\d+) \|.*`tests/|^\| F(\d+) \|.*the same test", _faults(), flags=re.M)
    numbers = {int(one or other) for one, other in listed}
    assert numbers >= {*range(1, 8), 9, 10, *range(13, 26), *range(35, 39), 41}


def _faults() -> str:
    return (ROOT / "docs" / "faults.md").read_text()


def test_readme_names_every_important_setting() -> None:
    named = set(re.findall(r"`((?:ORCHESTRA|PREFECT|OLLAMA)_[A-Z_]+)`", (ROOT / "README.md").read_text()))
    promised = {"HOME", "HOST", "PORT", "PREFECT_PORT", "DATABASE_URL", "API_KEY", "URL", "TEMPLATES_DIR", "WORK_POOL"}
    promised |= {"WORKER_LIMIT", "INPUT_DIRS", "OUTPUT_DIRS", "GIT_PROTOCOLS"}
    assert {f"ORCHESTRA_{name}" for name in promised} <= named


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_locks_carry_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    pinned = [line for line in text.splitlines() if re.match(r"^[a-z0-9].*==", line)]
    assert pinned
    assert text.count("--hash=sha256:") >= len(pinned)
