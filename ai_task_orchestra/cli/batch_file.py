"""The file of `orchestra batch`: YAML or JSON, a list of tasks or an object with the key `tasks`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.template_yaml import read_yaml


def read_tasks(name: str) -> list[dict[str, Any]]:
    """The tasks in a file; `-` is standard input. Whether they can be accepted is the API's to say.

    Raises:
        ConfigurationError: the file can't be read, or holds no list of tasks.
        TemplateError: it is neither YAML nor JSON.
    """
    try:
        text = sys.stdin.read() if name == "-" else Path(name).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"{name} is not text in UTF-8") from exc
    except OSError as exc:
        raise ConfigurationError(f"{name} can't be read: {exc.strerror}") from exc
    document = read_yaml(text, Path(name)).plain()
    tasks = document.get("tasks") if isinstance(document, dict) else document
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise ConfigurationError(f'{name} must hold a list of tasks, or {{"tasks": [...]}}')
    return tasks
