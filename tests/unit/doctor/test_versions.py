"""Versions and their floors."""

from __future__ import annotations

import pytest

from ai_task_orchestra.doctor import versions
from ai_task_orchestra.doctor.versions import PACKAGES, check_git, check_ollama, check_versions, numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2.39.5", (2, 39, 5)), ("2.39.5-0+deb12u3", (2, 39, 5)), ("1.10.0rc1", (1, 10, 0)), ("0.35", (0, 35)), ("x", ())],
)
def test_a_version_is_its_numbers(text: str, expected: tuple[int, ...]) -> None:
    assert numbers(text) == expected


def test_the_locked_packages_have_no_known_hole() -> None:
    assert [found for found in check_versions() if found.check == "packages" and found.verdict != "ok"] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_below_its_floor_is_a_problem_with_its_mend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = versions.version
    monkeypatch.setattr(versions, "version", lambda asked: "0.0.9" if asked == name else known(asked))
    (found,) = [found for found in check_versions() if found.verdict == "problem"]
    assert found.check == "packages"
    assert f"{name}>={PACKAGES[name][0]}" in (found.mend or "")


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("git version 2.43.7", "ok"),
        ("git version 2.49.1", "ok"),
        ("git version 2.50.1", "ok"),
        ("git version 2.51.0", "ok"),
        ("git version 3.0.0", "ok"),
        ("git version 2.43.6", "note"),
        ("git version 2.39.5 (Apple Git-154)", "note"),
        ("git version 2.49.0", "note"),
        ("git version 2.50.0", "note"),
        (None, "note"),
    ],
)
def test_git_is_judged_by_its_own_line(said: str | None, verdict: str) -> None:
    assert check_git(said).verdict == verdict


@pytest.mark.parametrize(
    ("present", "verdict"),
    [("0.35.0", "ok"), ("0.40.1-rc2", "ok"), ("0.34.9", "problem"), ("0.9.6", "problem"), ("0.9.6-embedded", "ok")],
)
def test_ollama_has_a_floor(present: str, verdict: str) -> None:
    found = check_ollama(present)
    assert found.verdict == verdict
    assert (found.mend is not None) == (verdict == "problem")
