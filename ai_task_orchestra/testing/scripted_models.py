"""What a scripted model server holds and how it is told to behave: models, scripts, settings.

All of it can be written as JSON or YAML (see docs/scripted-ollama.md).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Endpoint = Literal["version", "tags", "ps", "show", "generate", "chat", "embed", "pull"]

Fault = Literal[
    "hang",  # says nothing (more) and keeps the connection open
    "drip",  # `seconds` pass before each token
    "status",  # answers `status` with {"error": `error`}, or with `body`; `retry_after` and `location` become headers
    "html",  # answers `status` (200) with an HTML page, as a proxy in front might
    "body",  # answers 200 with exactly `body`, whatever it is
    "cut",  # breaks off between two lines, without the end of the chunked body
    "cut_line",  # breaks off within a line
    "no_done",  # ends properly, but without the last line
    "error_line",  # a line {"error": `error`} after the tokens, then a proper end
    "garbage",  # a line that is not JSON, then a proper end
    "huge_line",  # one line of `size_bytes`
    "close",  # closes the connection; before any answer when `after_tokens` is 0
    "reset",  # the same with a TCP reset
]


class ScriptedModel(BaseModel):
    """A model of the scripted server.

    `size_bytes` is what it occupies once loaded, `vram_bytes` how much of that on the GPU. Rates are per second;
    None computes as fast as it can. `text` is the answer to everything no script answers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    size_bytes: int = Field(default=100_000_000, ge=0)
    vram_bytes: int = Field(default=0, ge=0)
    load_seconds: float = Field(default=0.0, ge=0)
    tokens_per_second: float | None = Field(default=None, gt=0)
    prompt_tokens_per_second: float | None = Field(default=None, gt=0)
    text: str = "The capital of France is Paris."
    embedding_length: int = Field(default=8, ge=1)
    context_length: int = Field(default=8192, ge=1)
    family: str = "llama"
    parameter_size: str = "135M"
    quantization_level: str = "Q4_1"
    capabilities: tuple[str, ...] = ("completion",)

    @property
    def full_name(self) -> str:
        """The name with its tag, as Ollama lists it."""
        return full_name(self.name)


class Script(BaseModel):
    """How the requests it fits are answered.

    Fits by `endpoint`, `model` and `contains` (a text in the prompt, the messages or the input); a field left out
    fits everything. The first `skip` fitting requests are not touched, then `times` are (None: all of them).
    The rest overrides the model's own fields or names a `fault`, which strikes after `after_tokens` tokens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: Endpoint | None = None
    model: str | None = None
    contains: str | None = None
    skip: int = Field(default=0, ge=0)
    times: int | None = Field(default=None, ge=1)

    text: str | None = None
    thinking: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    done_reason: str | None = None
    tokens_per_second: float | None = Field(default=None, gt=0)
    load_seconds: float | None = Field(default=None, ge=0)

    fault: Fault | None = None
    after_tokens: int = Field(default=0, ge=0)
    seconds: float = Field(default=1.0, ge=0)
    status: int = Field(default=200, ge=200, le=599)
    retry_after: str | None = None
    location: str | None = None
    error: str = "an error was encountered while running the model"
    body: str | bytes | None = None
    size_bytes: int = Field(default=64_000_000, ge=1)

    def fits(self, endpoint: str, model: str, prompt: str) -> bool:
        """Whether a request is meant."""
        return (
            self.endpoint in (None, endpoint)
            and (self.model is None or full_name(self.model) == full_name(model))
            and (self.contains is None or self.contains in prompt)
        )


class ServerSpec(BaseModel):
    """The whole server, as a script file describes it. The limits carry the names of Ollama's own variables.

    `memory_bytes` None: everything fits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[ScriptedModel, ...] = (ScriptedModel(name="smollm2:135m"),)
    scripts: tuple[Script, ...] = ()
    memory_bytes: int | None = Field(default=None, gt=0)
    max_loaded_models: int = Field(default=3, ge=1)
    max_queue: int = Field(default=512, ge=1)
    num_parallel: int = Field(default=1, ge=1)
    keep_alive: float | str = "5m"
    version: str = "0.33.0"


def full_name(name: str) -> str:
    """`llama3` means `llama3:latest`."""
    return name if not name or ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"
