"""The step types, by name: one class each, in a module of its own."""

from __future__ import annotations

from typing import Final

from flows.steps.base import Step
from flows.steps.execute_script import ExecuteScript
from flows.steps.format_output import FormatOutput
from flows.steps.git_clone import GitClone
from flows.steps.http_request import HttpRequest
from flows.steps.ollama_analyze import OllamaAnalyze
from flows.steps.ollama_chat import OllamaChat
from flows.steps.ollama_embed import OllamaEmbed
from flows.steps.ollama_generate import OllamaGenerate
from flows.steps.read_files import ReadFiles
from flows.steps.run_command import RunCommand
from flows.steps.store_result import StoreResult
from flows.steps.wait import Wait

_ALL: Final[tuple[Step, ...]] = (
    OllamaGenerate(),
    OllamaChat(),
    OllamaEmbed(),
    OllamaAnalyze(),
    GitClone(),
    ExecuteScript(),
    RunCommand(),
    StoreResult(),
    ReadFiles(),
    FormatOutput(),
    HttpRequest(),
    Wait(),
)

STEPS: Final[dict[str, Step]] = {step.type: step for step in _ALL}
