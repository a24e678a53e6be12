"""Which model server the stack uses: an Ollama that answers, else the embedded backend."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from importlib.util import find_spec

import httpx

EMBEDDED_MODEL = "smollm2:135m"
ENGINE_PACKAGE = "xllamacpp"
ENGINE_LIBRARY = "libgomp.so.1"  # not in the package's wheel
PROBE_SECONDS = 2.0
# Models that give vectors instead of text, by what their names have in common.
EMBEDDING_MARKS = ("embed", "minilm", "bge-")


@dataclass(frozen=True)
class ModelServer:
    """Where models are found. `embedded`: we have to start it there ourselves. `models` in the server's order."""

    url: str
    embedded: bool
    models: tuple[str, ...]

    @property
    def first_text_model(self) -> str:
        """The model for examples: the first that answers with text; without any, the small one's name."""
        texts = [name for name in self.models if not any(mark in name for mark in EMBEDDING_MARKS)]
        return next(iter(texts), EMBEDDED_MODEL)


async def find_ollama(url: str) -> ModelServer | None:
    """The Ollama server at `url`, or None if nothing there answers like one."""
    async with httpx.AsyncClient(base_url=url, timeout=PROBE_SECONDS, trust_env=False) as client:
        try:
            (await client.get("/api/version")).raise_for_status().json()
            tags = (await client.get("/api/tags")).raise_for_status().json()
            return ModelServer(url, embedded=False, models=tuple(item["name"] for item in tags.get("models") or ()))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, AttributeError):
            return None


def engine_problem() -> str | None:
    """Why the embedded backend can't be used here; None if nothing speaks against it."""
    if find_spec(ENGINE_PACKAGE) is None:
        return f"the package {ENGINE_PACKAGE} (extra `embedded-model`) is not installed"
    if sys.platform == "linux":
        try:
            ctypes.CDLL(ENGINE_LIBRARY)
        except OSError:
            return f"the system library {ENGINE_LIBRARY} is missing (on Debian and Ubuntu: apt-get install libgomp1)"
    return None
