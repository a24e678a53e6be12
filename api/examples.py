"""The examples of the API reference, shown in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

INFERENCE_PARAMETERS: Final = {"model": "llama3.1:8b", "prompt": "Explain quantum computing in simple terms"}

TASK_REQUEST: Final[dict[str, Any]] = {
    "template": "ollama-inference",
    "parameters": INFERENCE_PARAMETERS,
    "priority": 5,
    "depends_on": [],
}

TASK_ACCEPTED: Final[dict[str, Any]] = {
    "id": "8c1f2f0e-6f6a-4a51-9a53-0d1f6f7f2c11",
    "status": "queued",
    "priority": 5,
    "created_at": "2025-08-09T10:30:00.000000Z",
    "template": "ollama-inference",
    "parameters": INFERENCE_PARAMETERS,
    "depends_on": [],
}

TASK_LISTED: Final[dict[str, Any]] = {
    "id": "8c1f2f0e-6f6a-4a51-9a53-0d1f6f7f2c11",
    "status": "completed",
    "priority": 5,
    "created_at": "2025-08-09T10:30:00.000000Z",
    "completed_at": "2025-08-09T10:45:00.000000Z",
    "template": "ollama-inference",
}

TASK_GROUPED: Final[dict[str, Any]] = TASK_LISTED | {"started_at": "2025-08-09T10:32:00.000000Z"}

TASK_DETAIL: Final[dict[str, Any]] = TASK_GROUPED | {
    "parameters": {"model": "llama3.1:8b", "prompt": "Example prompt"},
    "depends_on": [],
    "result": {"output": "Example output from the model"},
    "resource_usage": {"model_name": "llama3.1:8b", "inference_time_seconds": 45.2, "memory_used_gb": 8.1},
    "attempts": [
        {
            "number": 1,
            "worker": "gpu-1",
            "started": "2025-08-09T10:32:00.000000Z",
            "ended": "2025-08-09T10:45:00.000000Z",
            "outcome": "completed",
        }
    ],
}

PRIORITY_CHANGED: Final[dict[str, Any]] = {
    "id": "8c1f2f0e-6f6a-4a51-9a53-0d1f6f7f2c11",
    "priority": 8,
    "status": "queued",
}

TEMPLATE_SUMMARY: Final[dict[str, Any]] = {
    "name": "ollama-inference",
    "description": "Run inference with specified model and prompt",
    "parameters": [
        {"name": "model", "type": "string", "required": True, "description": "Ollama model name"},
        {"name": "prompt", "type": "string", "required": True, "description": "Prompt for the model"},
        {"name": "system_prompt", "type": "string", "required": False, "description": "Optional system prompt"},
    ],
}

TEMPLATE_DETAIL: Final[dict[str, Any]] = TEMPLATE_SUMMARY | {
    "steps": [
        {
            "type": "ollama_generate",
            "model": "{{model}}",
            "prompt": "{{prompt}}",
            "system": "{{system_prompt}}",
        }
    ],
}

VALIDATION: Final[dict[str, Any]] = {"valid": True, "missing_parameters": [], "invalid_parameters": []}

PROBLEM: Final[dict[str, Any]] = {"detail": "There is no task with this id.", "code": "not_found"}

_DRAFT: Final = "8c1f2f0e-6f6a-4a51-9a53-0d1f6f7f2c11"
_REVIEW: Final = "1b0a6a55-4e0c-4b0e-8d57-6b1f0c3f9d02"

BATCH_REQUEST: Final[dict[str, Any]] = {
    "tasks": [
        {"name": "draft", "template": "ollama-inference", "parameters": INFERENCE_PARAMETERS},
        {
            "name": "review",
            "template": "ollama-inference",
            "parameters": {"model": "llama3.1:8b", "prompt": {"$result": "draft", "path": "output"}},
            "priority": 7,
            "depends_on": ["draft"],
        },
    ]
}

BATCH_ACCEPTED: Final[dict[str, Any]] = {
    "id": "5f0c9f0e-0d39-4d0a-93a4-7c1d58d3f2aa",
    "created_at": "2025-08-09T10:30:00.000000Z",
    "ids": [_DRAFT, _REVIEW],
    "tasks": {"draft": _DRAFT, "review": _REVIEW},
}

BATCH_DETAIL: Final[dict[str, Any]] = {
    "id": "5f0c9f0e-0d39-4d0a-93a4-7c1d58d3f2aa",
    "created_at": "2025-08-09T10:30:00.000000Z",
    "status": "running",
    "counts": {"queued": 1, "running": 0, "completed": 1, "failed": 0, "cancelled": 0},
    "tasks": [
        TASK_GROUPED | {"name": "draft", "depends_on": []},
        {
            "id": _REVIEW,
            "name": "review",
            "status": "queued",
            "priority": 7,
            "created_at": "2025-08-09T10:30:00.000000Z",
            "template": "ollama-inference",
            "depends_on": [_DRAFT],
        },
    ],
}

KEY_REQUEST: Final[dict[str, Any]] = {
    "name": "nightly reports",
    "tenant": "statistics",
    "scopes": ["read", "submit"],
    "templates": ["ollama-inference"],
    "max_priority": 5,
    "max_queued": 1000,
    "max_running": 2,
    "requests_per_minute": 600,
}

KEY_DESCRIBED: Final[dict[str, Any]] = {
    "id": "0b9c9a52-52f4-4a04-8a59-4f0f0a4b7c11",
    "name": "nightly reports",
    "tenant": "statistics",
    "prefix": "ato_7Qm2",
    "scopes": ["read", "submit"],
    "status": "active",
    "created_at": "2025-08-09T10:30:00.000000Z",
    "last_used_at": "2025-08-09T11:02:00.000000Z",
    "max_priority": 5,
}

KEY_SHOWN: Final[dict[str, Any]] = KEY_DESCRIBED | {"key": "ato_7Qm2... (32 characters)"}

AUDIT_LISTED: Final[dict[str, Any]] = {
    "id": 4711,
    "at": "2025-08-09T10:30:00.000000Z",
    "kind": "task_created",
    "task_id": "8c1f2f0e-6f6a-4a51-9a53-0d1f6f7f2c11",
    "actor": "nightly reports",
    "actor_key_id": "0b9c9a52-52f4-4a04-8a59-4f0f0a4b7c11",
    "tenant": "statistics",
    "request_id": "4f1c9a52a0f84b0c9d3c6d7f2c110b9c",
    "detail": {"template": "ollama-inference", "priority": 5},
}
