"""The deployments that flow runs are created from, remembered for a while."""

from __future__ import annotations

import logging
import time
from typing import Final
from uuid import UUID

from api.gateway import PrefectGateway
from api.prefect_types import Deployment

logger = logging.getLogger(__name__)

KNOWN_SECONDS: Final = 60.0
#: A deployment that is not there is looked for again after this: a new template is just being deployed.
MISSING_SECONDS: Final = 1.0


class Deployments:
    """Finds the deployment of a template."""

    def __init__(self, gateway: PrefectGateway) -> None:
        self._gateway = gateway
        self._known: dict[str, tuple[float, Deployment | None]] = {}

    async def find(self, template: str, frozen: UUID | None) -> Deployment | None:
        """The deployment that a task was created from before (`frozen`), else its template's; None: not there (yet)."""
        until, deployment = self._known.get(template, (0.0, None))
        if time.monotonic() >= until:
            deployment = await self._gateway.deployment(template)
            if deployment is None:
                logger.warning("deployment_missing", extra={"template": template})
            seconds = KNOWN_SECONDS if deployment else MISSING_SECONDS
            self._known[template] = (time.monotonic() + seconds, deployment)
        if frozen is None or (deployment is not None and deployment.id == frozen):
            return deployment
        return await self._gateway.deployment_by_id(frozen) or deployment

    def forget(self, template: str) -> None:
        """Look again next time."""
        self._known.pop(template, None)
