"""One flow per template, made when this module is imported.

Deployments name their flow in module form, `flows.catalog.ollama_inference`: each flow is an attribute under its
template's identifier. The folder is `ORCHESTRA_TEMPLATES_DIR`. A template that can't be used has no flow here; the
API and the log say why. Everything else in this module begins with an underscore or is in capitals, so that no
template's name can clash with it.
"""

import logging as _logging
from collections.abc import Mapping as _Mapping
from types import MappingProxyType as _MappingProxyType
from typing import Any as _Any

from prefect import Flow as _Flow

from ai_task_orchestra.errors import ConfigurationError as _ConfigurationError
from ai_task_orchestra.library import TemplateLibrary as _TemplateLibrary
from ai_task_orchestra.settings import Settings as _Settings
from ai_task_orchestra.settings import load_settings as _load_settings
from flows.compiler import compile_template as _compile_template

_logger = _logging.getLogger(__name__)


def _compile(library: _TemplateLibrary, settings: _Settings) -> dict[str, _Flow[..., _Any]]:
    flows = {}
    for name, spec in library.templates.items():
        try:
            flows[name] = _compile_template(spec, settings=settings)
        except (_ConfigurationError, TypeError, ValueError) as exc:  # the other templates must stay usable
            _logger.error("template_not_compiled", extra={"template": name, "reason": str(exc)})
    return flows


_SETTINGS = _load_settings()
LIBRARY = _TemplateLibrary(_SETTINGS.templates_dir)
FLOWS: _Mapping[str, _Flow[..., _Any]] = _MappingProxyType(_compile(LIBRARY, _SETTINGS))
"""The flows by template name."""

globals().update({LIBRARY.get(_name).identifier: _flow for _name, _flow in FLOWS.items()})
