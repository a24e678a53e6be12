"""Who asks: the holder of a key, what the key may do, and who is written down as the author of a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

READ: Final = "read"
SUBMIT: Final = "submit"
ADMIN: Final = "admin"
#: What a key may be allowed: look at tasks; make and change them; see to keys and read the audit. None implies another.
SCOPES: Final = (READ, SUBMIT, ADMIN)
DEFAULT_SCOPES: Final = (READ, SUBMIT)
DEFAULT_TENANT: Final = "default"


@dataclass(frozen=True)
class Limits:
    """What a key may ask for; None = no limit."""

    templates: tuple[str, ...] | None = None
    max_priority: int | None = None
    max_queued: int | None = None
    max_running: int | None = None
    requests_per_minute: int | None = None

    def priority(self, wished: int) -> int:
        """The priority that a wish for `wished` gets."""
        return wished if self.max_priority is None else min(wished, self.max_priority)

    def allows(self, template: str) -> bool:
        return self.templates is None or template in self.templates


UNLIMITED: Final = Limits()


@dataclass(frozen=True)
class Identity:
    """The holder of a valid key. `key_id` is None for the operator's own keys, which have no limits."""

    name: str
    tenant: str = DEFAULT_TENANT
    scopes: frozenset[str] = frozenset(SCOPES)
    key_id: UUID | None = None
    limits: Limits = field(default=UNLIMITED)
    expires_at: datetime | None = None


@dataclass(frozen=True)
class Author:
    """Who asks for a change, and in which request."""

    identity: Identity
    request_id: str | None = None

    @property
    def tenant(self) -> str:
        return self.identity.tenant

    @property
    def limits(self) -> Limits:
        return self.identity.limits

    def as_json(self) -> dict[str, Any]:
        """What an audit row says of its author, for a row that is written later."""
        key_id = self.identity.key_id
        return {
            "actor": self.identity.name,
            "actor_key_id": str(key_id) if key_id else None,
            "tenant": self.tenant,
            "request_id": self.request_id,
        }


def author_columns(known: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of an audit row from what `Author.as_json` gave."""
    key_id = known.get("actor_key_id")
    return dict(known) | {"actor_key_id": UUID(key_id) if key_id else None}


#: The system itself, for what nobody asked for over the API.
INTERNAL: Final = Author(Identity("internal"))
#: Whoever may read the database's address: `orchestra keys`.
COMMAND_LINE: Final = Author(Identity("command line"))
