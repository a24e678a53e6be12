"""The inside of a runner: llama.cpp's own HTTP server for one model, alone in its process.

Only this module imports xllamacpp: loading a model holds the interpreter's lock for as long as it takes, and a
damaged model file or an unsuitable CPU ends the process.

The parent writes one JSON line (`RunnerConfig`) to our stdin and keeps it open; we answer with one JSON line on stdout,
`{"address": ...}` or `{"error": ...}`, and live until stdin ends. The key travels this way because arguments and
environment of a process are easier to see.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any, TypedDict

from ai_task_orchestra.model_backend.lifeline import end_with_parent

EXIT_FAILED = 3
INSTALL = "install it with `pip install 'ai-task-orchestra[embedded-model]'`, or set OLLAMA_HOST to an Ollama server"


class RunnerConfig(TypedDict):
    """What a runner is told. `path` None only asks whether the engine can be used here."""

    parent: int
    path: str | None
    name: str
    api_key: str
    context_length: int
    parallel: int
    threads: int
    batch: int


def main() -> None:
    """Serve until the parent goes; `os._exit` throughout, as the engine's threads know no orderly end."""
    config: RunnerConfig = json.loads(sys.stdin.buffer.readline())
    end_with_parent(config["parent"], sys.stdin.buffer)
    report = os.dup(1)
    os.dup2(2, 1)  # what the engine prints must not look like our answer
    try:
        answer = _probe() if config["path"] is None else _serve(config)
    except Exception as exc:  # whatever it is, the parent is to know
        answer = {"error": explain(exc)}
    os.write(report, json.dumps(answer).encode() + b"\n")
    if "address" not in answer:
        os._exit(EXIT_FAILED if "error" in answer else 0)
    threading.Event().wait()


def explain(error: Exception) -> str:
    """A sentence for the person who has to mend it."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name == "xllamacpp":
        return f"the package xllamacpp is not installed: {INSTALL}"
    if "libgomp" in text:
        return f"the system library libgomp is missing ({text}): apt-get install libgomp1"
    if isinstance(error, ImportError | OSError):
        return f"xllamacpp can't be loaded ({text}): {INSTALL}"
    return f"unable to load model: {text}"


def _probe() -> dict[str, str]:
    import xllamacpp

    return {"engine": str(getattr(xllamacpp, "__version__", "")), "system": str(xllamacpp.get_system_info())}


_kept: list[Any] = []
"""A server that is collected stops serving."""


def _serve(config: RunnerConfig) -> dict[str, str]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = config["path"]
    params.model_alias = {config["name"]}
    params.n_parallel = config["parallel"]
    params.n_ctx = config["context_length"] * config["parallel"]  # the engine divides it between the slots
    # A request that is given up is noticed between batches; a text to embed must fit into one.
    params.n_batch = params.n_ubatch = config["batch"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config["threads"]
    params.ctx_shift = True
    # Embeddings and text from one server; mean pooling as sentence models use it.
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.cache_ram_mib = 0
    params.verbosity = 1
    params.ui = False
    params.api_keys = [config["api_key"]]
    server = xllamacpp.Server(params)
    _kept.append(server)
    return {"address": str(server.listening_address)}


if __name__ == "__main__":
    main()
