"""The last route under `/api/v1`: paths and methods that do not exist, told only to whoever has a key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from starlette.requests import Request
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from api.auth import authenticate
from api.errors import ApiError
from api.rooms import rooms_of

_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


class UnknownPath:
    """ASGI endpoint for what no other of `routes` takes: 401 without a key, else 405 or 404.

    It stands after them, so a path that fits one of them got here by its method.
    """

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = tuple(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await authenticate(request, rooms_of(request))
        allowed = ", ".join(self._allowed(scope))
        if allowed:
            detail = f"This address knows only {allowed}."
            raise ApiError(405, "method_not_allowed", detail, headers={"Allow": allowed})
        raise ApiError(404, "not_found", "There is nothing at this address.")

    def _allowed(self, scope: Scope) -> Iterable[str]:
        for method in _METHODS:
            asked = {**scope, "method": method}
            if any(route.matches(asked)[0] is Match.FULL for route in self._routes):
                yield method


def unknown_paths(prefix: str, routes: Sequence[BaseRoute]) -> Route:
    """A route for everything under `prefix`, whatever the method."""
    return Route(f"{prefix}{{rest:path}}", UnknownPath(routes), include_in_schema=False)
