"""`ollama_embed`: one vector per text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from flows.clients.ollama import OllamaClient
from flows.steps import ollama_fields
from flows.steps.base import StepContext


class OllamaEmbed:
    """Embeds a text or a list of texts; `embeddings` is a list in the same order, also for one text."""

    type: ClassVar[str] = "ollama_embed"

    async def run(self, fields: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        """Fields: model, input, options, keep_alive."""
        model, texts = ollama_fields.model_name(fields), ollama_fields.texts(fields)
        call = ollama_fields.call_options(fields, "options", "keep_alive")
        async with OllamaClient(context.settings, deadline_seconds=context.timeout_seconds, log=context.log) as client:
            vectors, used = await client.embed(model=model, texts=texts, **call)
        context.usage.add_model(used)
        return {"embeddings": vectors}
