from __future__ import annotations

import os
from pathlib import Path

import pytest

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.model_backend import cards
from ai_task_orchestra.model_backend.digests import DigestStore, sha256_of
from ai_task_orchestra.model_backend.installed import Shelf, full_name, read_model
from ai_task_orchestra.model_backend.protocol import ProtocolError
from tests.unit.model_backend.fakes import installed
from tests.unit.model_backend.test_gguf import header, pair, text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(pair("general.architecture", 8, text("llama")), pair("general.license", 8, text("mit"))))
    return path


def test_a_model_file_is_read_with_its_digest(file: Path, tmp_path: Path) -> None:
    model = read_model("Mine", file, DigestStore(tmp_path / "cache"))
    assert (model.name, model.family, model.chat_template, model.trained_context) == ("mine:latest", "llama", "", None)
    assert model.digest == sha256_of(file)
    assert model.size_bytes == file.stat().st_size


def test_a_file_that_is_missing_or_no_model_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read"):
        read_model("x", tmp_path / "none.gguf", DigestStore(tmp_path))
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigurationError, match="not a GGUF file"):
        read_model("x", tmp_path / "text", DigestStore(tmp_path))


def test_a_digest_is_read_again_when_size_or_time_change(file: Path, tmp_path: Path) -> None:
    store = DigestStore(tmp_path / "cache")
    before = store.digest(file)
    info = file.stat()
    file.write_bytes(bytes(info.st_size))
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert store.digest(file) == before  # the price of not reading: same size and same time
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    assert store.digest(file) == sha256_of(file) != before


def test_a_cache_that_can_not_be_written_only_costs_time(file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = DigestStore(tmp_path / "file")
    assert store.digest(file) == store.digest(file) == sha256_of(file)


def test_digests_of_files_that_are_gone_are_forgotten(file: Path, tmp_path: Path) -> None:
    store = DigestStore(tmp_path / "cache")
    other = tmp_path / "other"
    other.write_text("x")
    store.digest(other)
    other.unlink()
    store.digest(file)
    assert str(other) not in (tmp_path / "cache" / "digests.json").read_text()


@pytest.mark.parametrize(
    ("given", "full"),
    [("a", "a:latest"), ("A:B", "a:b"), ("library/a", "library/a:latest"), ("host:5000/a", "host:5000/a:latest")],
)
def test_a_name_without_a_tag_means_latest(given: str, full: str) -> None:
    assert full_name(given) == full


def test_a_shelf_offers_what_was_put_on_it() -> None:
    shelf = Shelf([installed("a:1")])
    assert not shelf.has("b:1")
    shelf.add(installed("b:1"))
    assert shelf.find("B:1").name == "b:1"
    assert [model.name for model in shelf.all()] == ["a:1", "b:1"]
    with pytest.raises(ProtocolError, match="model 'c' not found"):
        shelf.find("c")


def test_a_card_is_honest_about_what_serves_the_model() -> None:
    card = cards.card(installed())
    assert "not by an Ollama server" in card["modelfile"]
    assert "SmolLM2" not in card["modelfile"]  # another file gets no praise of this one
    assert "/models" not in card["modelfile"]
    assert "tokenizer.chat_template" not in card["model_info"]
    assert card["capabilities"] == ["completion", "embedding"]
