"""`ollama_generate`: one prompt, one answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from flows.clients.ollama import OllamaClient
from flows.clients.ollama_answer import ModelAnswer
from flows.steps import ollama_fields
from flows.steps.base import StepContext
from flows.steps.ollama_structured import in_format


def outputs(answer: ModelAnswer) -> dict[str, Any]:
    """The output fields of every answer in words; counts and times have the names of `resource_usage`."""
    call = answer.call
    return {
        "output": answer.text,
        "truncated": answer.truncated,
        "done_reason": answer.done_reason or "",
        "prompt_tokens": call.prompt_tokens,
        "output_tokens": call.output_tokens,
        "load_time_seconds": round(call.load_seconds, 3),
        "inference_time_seconds": round(call.evaluation_seconds, 3),
    }


class OllamaGenerate:
    """Asks the model once; with `format`, `parsed` is the value in the answer."""

    type: ClassVar[str] = "ollama_generate"

    async def run(self, fields: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        """Fields: model, prompt, system, format, options, keep_alive, images."""
        settings = context.settings
        model, prompt = ollama_fields.model_name(fields), ollama_fields.text(fields, "prompt")
        call: dict[str, Any] = ollama_fields.call_options(fields, "format", "options", "keep_alive")
        if (system := ollama_fields.optional_text(fields, "system")) is not None:
            call["system"] = system
        if fields.get("images") is not None:
            call["images"] = await ollama_fields.images(fields["images"], settings)

        async with OllamaClient(settings, deadline_seconds=context.timeout_seconds, log=context.log) as client:

            async def ask(correction: str | None) -> ModelAnswer:
                asked = prompt if correction is None else f"{prompt}\n\n{correction}"
                answer = await client.generate(model=model, prompt=asked, **call)
                context.usage.add_model(answer.call)
                return answer

            if "format" not in call:
                answer = await ask(None)
                return outputs(answer)
            answer, parsed = await in_format(call["format"], ask)
            return {"parsed": parsed, **outputs(answer)}
