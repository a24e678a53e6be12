"""The models on disk that this backend offers, by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.model_backend import gguf
from ai_task_orchestra.model_backend.digests import DigestStore
from ai_task_orchestra.model_backend.protocol import ProtocolError

CHAT_TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class InstalledModel:
    """One GGUF file under one name. `header` are the file's key-value pairs, long lists as None."""

    name: str
    path: Path
    size_bytes: int
    modified_at: datetime
    digest: str
    header: dict[str, Any]

    @property
    def family(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.header.get("general.architecture", ""))

    @property
    def chat_template(self) -> str:
        """The model's Jinja template; empty for a base model, which continues text instead of answering."""
        return str(self.header.get(CHAT_TEMPLATE) or "")

    @property
    def trained_context(self) -> int | None:
        """Tokens the model was trained to see at once."""
        value = self.header.get(f"{self.family}.context_length")
        return value if isinstance(value, int) and value > 0 else None

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts a begin-of-text token before every prompt."""
        return bool(self.header.get("tokenizer.ggml.add_bos_token", False))


class Shelf:
    """The installed models. A name without a tag means `:latest`, as in Ollama."""

    def __init__(self, models: Iterable[InstalledModel] = ()) -> None:
        self._models = {model.name: model for model in models}

    def add(self, model: InstalledModel) -> None:
        """Offer a model, in place of one that had its name."""
        self._models[model.name] = model

    def all(self) -> list[InstalledModel]:
        """Newest first, as Ollama lists them."""
        return sorted(self._models.values(), key=lambda model: (-model.modified_at.timestamp(), model.name))

    def has(self, name: str) -> bool:
        """Whether a request for `name` would find a model."""
        return full_name(name) in self._models

    def find(self, name: str) -> InstalledModel:
        """The model called `name`.

        Raises:
            ProtocolError: 404.
        """
        try:
            return self._models[full_name(name)]
        except KeyError:
            raise ProtocolError(404, f"model '{name[:200]}' not found") from None


def full_name(name: str) -> str:
    """`name` with its tag; compared without regard to case."""
    name = name.lower()
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def read_model(name: str, path: Path, digests: DigestStore) -> InstalledModel:
    """Read what must be known of a model file. Blocks while a file not seen before is hashed.

    Raises:
        ConfigurationError: there is no such file, or it is no GGUF file.
    """
    path = path.expanduser().resolve()
    try:
        info = path.stat()
        header = gguf.read_header(path)
        digest = digests.digest(path)
    except OSError as exc:
        raise ConfigurationError(f"the model file {path} can't be read: {exc.strerror or exc}") from exc
    except gguf.GgufError as exc:
        raise ConfigurationError(f"the model file {path} can't be used: {exc}") from exc
    modified = datetime.fromtimestamp(info.st_mtime, UTC)
    return InstalledModel(full_name(name), path, info.st_size, modified, digest, header)
