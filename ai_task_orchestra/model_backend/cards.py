"""How models are described: `tags`, `ps`, `show`. Honest about what serves them and what they can do."""

from __future__ import annotations

from typing import Any

from ai_task_orchestra.model_backend import gguf, model_file
from ai_task_orchestra.model_backend.installed import CHAT_TEMPLATE, InstalledModel
from ai_task_orchestra.model_backend.protocol import DEFAULT_TEMPERATURE, timestamp
from ai_task_orchestra.model_backend.scheduler import LoadedModel

ABOUT = "Served by the embedded model backend of AI Task Orchestra (llama.cpp on the CPU), not by an Ollama server."
ABOUT_DEFAULT = (
    "SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0), quantised to Q4_1: a small model for trying things out. "
    "It knows simple facts, summarises, classifies and fills JSON schemas; it can't do sums or translate."
)


def tag(model: InstalledModel) -> dict[str, Any]:
    """A line of `/api/tags`."""
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": timestamp(model.modified_at),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": details(model),
    }


def loaded(resident: LoadedModel) -> dict[str, Any]:
    """A line of `/api/ps`; `size` is what the process occupies, none of it on a GPU."""
    model = resident.model
    return {
        "name": model.name,
        "model": model.name,
        "size": resident.memory_bytes,
        "digest": model.digest,
        "details": details(model),
        "expires_at": timestamp(resident.expires_at),
        "size_vram": 0,
        "context_length": resident.context_length,
    }


def card(model: InstalledModel) -> dict[str, Any]:
    """The answer of `/api/show`."""
    about = [ABOUT] + ([ABOUT_DEFAULT] if model.digest == model_file.SHA256 else [])
    return {
        "license": str(model.header.get("general.license", "")),
        "modelfile": "".join(f"# {line}\n" for line in about) + f"FROM {model.path.name}\n",
        "parameters": f"temperature {DEFAULT_TEMPERATURE}",
        "template": model.chat_template,
        "details": details(model),
        "model_info": {name: value for name, value in model.header.items() if name != CHAT_TEMPLATE},
        "capabilities": ["completion", "embedding"],
        "modified_at": timestamp(model.modified_at),
    }


def details(model: InstalledModel) -> dict[str, Any]:
    """The short description that all three carry."""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": str(model.header.get("general.size_label", "")),
        "quantization_level": gguf.FILE_TYPES.get(model.header.get("general.file_type", -1), "unknown"),
    }
