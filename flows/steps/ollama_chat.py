"""`ollama_chat`: the model's next message in a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import ollama

from flows.clients.ollama import OllamaClient
from flows.clients.ollama_answer import ModelAnswer
from flows.steps import ollama_fields
from flows.steps.base import StepContext
from flows.steps.ollama_generate import outputs
from flows.steps.ollama_structured import in_format


class OllamaChat:
    """Asks for the next message. Tools are described to the model and its calls returned; nothing is called."""

    type: ClassVar[str] = "ollama_chat"

    async def run(self, fields: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        """Fields: model, messages, format, options, keep_alive, tools."""
        settings = context.settings
        model = ollama_fields.model_name(fields)
        messages = await ollama_fields.messages(fields, settings)
        call: dict[str, Any] = ollama_fields.call_options(fields, "format", "options", "keep_alive")
        if (tools := ollama_fields.tools(fields)) is not None:
            call["tools"] = tools

        async with OllamaClient(settings, deadline_seconds=context.timeout_seconds, log=context.log) as client:

            async def ask(correction: str | None) -> ModelAnswer:
                if correction is not None:
                    messages.append(ollama.Message(role="user", content=correction))
                answer = await client.chat(model=model, messages=messages, **call)
                context.usage.add_model(answer.call)
                messages.append(ollama.Message(role="assistant", content=answer.text))
                return answer

            if "format" not in call:
                answer = await ask(None)
                return {"message": answer.message, **outputs(answer)}
            answer, parsed = await in_format(call["format"], ask)
            return {"message": answer.message, "parsed": parsed, **outputs(answer)}
