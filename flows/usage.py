"""What a task used: filled by its steps, reported once at the end under the names the REST API promises.

A gigabyte here is 1e9 bytes, as Ollama's own tools print sizes. Sizes and times are rounded to three decimals
(megabytes and milliseconds): nothing below that is repeatable.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, field
from typing import Any, Final

GIGABYTE: Final = 1_000_000_000
# `ru_maxrss` counts bytes on macOS and kilobytes elsewhere.
_MAXRSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What one request to the model server took, as the engine itself measured it.

    `evaluation_seconds` is prompt plus answer; `memory_bytes` and `gpu_memory_bytes` are what the loaded model
    occupied afterwards (None: the server did not say).
    """

    model: str
    evaluation_seconds: float = 0.0
    load_seconds: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None


@dataclass(slots=True)
class ResourceUsage:
    """Collects the usage of one attempt of a task."""

    calls: list[ModelCall] = field(default_factory=list)
    peak_rss_bytes: int = 0
    cpu_seconds: float = 0.0
    isolation_level: int | None = None
    _own_cpu_at_start: float = field(default_factory=lambda: _own_cpu_seconds())

    def add_model(self, call: ModelCall) -> None:
        """Count one request to the model server."""
        self.calls.append(call)

    def add_process(self, *, peak_rss_bytes: int, cpu_seconds: float) -> None:
        """Count one finished process tree: its largest resident size and the processor time it took."""
        self.peak_rss_bytes = max(self.peak_rss_bytes, peak_rss_bytes)
        self.cpu_seconds += cpu_seconds

    def add_isolation(self, level: int) -> None:
        """A program ran at this level of isolation; the lowest one counts."""
        self.isolation_level = level if self.isolation_level is None else min(level, self.isolation_level)

    def as_dict(self) -> dict[str, Any]:
        """`resource_usage` of the task: the model's figures if one was used, else those of its processes.

        A task without processes of its own reports the process that ran it.
        """
        if self.calls:
            return self._models()
        if self.peak_rss_bytes:
            return _processes(self.peak_rss_bytes, self.cpu_seconds)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
        return _processes(own, _own_cpu_seconds() - self._own_cpu_at_start)

    def _models(self) -> dict[str, Any]:
        """Times and tokens of all calls; name and memory are those of the model that computed longest."""
        seconds: dict[str, float] = {}
        for call in self.calls:
            seconds[call.model] = seconds.get(call.model, 0.0) + call.evaluation_seconds
        name = max(seconds, key=lambda model: seconds[model])
        own = [call for call in self.calls if call.model == name]
        usage = {
            "model_name": name,
            "inference_time_seconds": round(sum(seconds.values()), 3),
            "load_time_seconds": round(sum(call.load_seconds for call in self.calls), 3),
            "prompt_tokens": sum(call.prompt_tokens for call in self.calls),
            "output_tokens": sum(call.output_tokens for call in self.calls),
            "memory_used_gb": _largest_gb(call.memory_bytes for call in own),
            "gpu_memory_used_gb": _largest_gb(call.gpu_memory_bytes for call in own),
        }
        return {key: value for key, value in usage.items() if value is not None}


def _largest_gb(sizes: Any) -> float | None:
    known = [size for size in sizes if size is not None]
    return round(max(known) / GIGABYTE, 3) if known else None


def _processes(peak_rss_bytes: int, cpu_seconds: float) -> dict[str, Any]:
    return {"memory_used_gb": round(peak_rss_bytes / GIGABYTE, 3), "cpu_time_seconds": round(cpu_seconds, 3)}


def _own_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
