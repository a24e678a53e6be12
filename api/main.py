"""The REST API as an ASGI application: `uvicorn api.main:app`.

Importing this module opens and reads nothing. `app` is built on first use, everything else by the lifespan:

1. the template library is read;
2. the core opens (database, dispatcher, mirror);
3. what would leave a door open is refused: a server that others can reach without a key, say;
4. the last use of keys is written down from now on;
5. the template watch starts.

They close in the opposite order: the watch may still use the library, nothing may use a closed core.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import cache, partial
from typing import Any, Final, Protocol

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute

from ai_task_orchestra import __version__
from ai_task_orchestra.library import TemplateLibrary
from ai_task_orchestra.logs import configure_logging
from ai_task_orchestra.settings import Settings, load_settings
from api import documentation, errors
from api.audit import AuditStore
from api.auth import authenticate
from api.batch_service import BatchService
from api.core import open_core
from api.envelope import RequestEnvelope
from api.key_ring import KeyRing
from api.keys import ApiKeyStore
from api.rooms import Rooms
from api.routes import audit, batches, health, keys, tasks, templates
from api.service import TaskService
from api.startup import refuse_open_doors
from api.template_watch import TemplateWatch, run_bootstrap
from api.throttle import RequestRate, WrongKeys
from api.unknown_paths import unknown_paths

PREFIX: Final = "/api/v1"


class OpenCore(Protocol):
    """The part of `api.core.Core` that this room uses."""

    @property
    def service(self) -> TaskService: ...

    @property
    def batches(self) -> BatchService: ...

    @property
    def sessions(self) -> Any: ...


CoreFactory = Callable[[Settings, TemplateLibrary], AbstractAsyncContextManager[OpenCore]]
#: What sees to stored keys, and what reads the audit, in the core's sessions.
StoreFactories = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def create_app(
    settings: Settings | None = None,
    *,
    core_factory: CoreFactory = open_core,
    stores: StoreFactories = (ApiKeyStore, AuditStore),
) -> FastAPI:
    """The application with `settings`, else those of the environment.

    `core_factory` and `stores` are the seams to the database, for tests.

    Raises:
        ConfigurationError: the environment's settings can't be used.
    """
    settings = settings or load_settings()
    shown = documentation.docs_shown(settings)
    app = FastAPI(
        title="AI Task Orchestra",
        version=__version__,
        description=documentation.DESCRIPTION,
        openapi_url="/openapi.json" if shown else None,
        docs_url="/docs" if shown else None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=partial(_lifespan, settings=settings, core_factory=core_factory, stores=stores),
        generate_unique_id_function=_operation_id,
    )
    app.add_middleware(RequestEnvelope)
    errors.install(app)
    app.include_router(health.router)
    _add_api(app)
    described = app.openapi
    app.openapi = lambda: documentation.refine(described())  # type: ignore[method-assign]
    return app


def _add_api(app: FastAPI) -> None:
    """Everything under `/api/v1`, behind the key, and at its end the answer for what does not exist."""
    api = APIRouter(prefix=PREFIX, dependencies=[Depends(authenticate)], responses=documentation.EVERYWHERE)
    api.include_router(batches.router)
    api.include_router(tasks.router)
    api.include_router(templates.router)
    api.include_router(keys.router)
    api.include_router(audit.router)
    before = len(app.router.routes)
    app.include_router(api)
    app.router.routes.append(unknown_paths(PREFIX, app.router.routes[before:]))


@contextlib.asynccontextmanager
async def _lifespan(
    app: FastAPI, *, settings: Settings, core_factory: CoreFactory, stores: StoreFactories
) -> AsyncIterator[None]:
    """The numbered steps of this module's docstring."""
    async with AsyncExitStack() as stack:
        # 1.
        library = TemplateLibrary(settings.templates_dir)
        library.refresh()
        # 2.
        core = await stack.enter_async_context(core_factory(settings, library))
        # 3.
        key_store, audit_store = (make(core.sessions) for make in stores)
        ring = KeyRing(settings, key_store)
        await refuse_open_doors(settings, ring)
        # 4.
        await stack.enter_async_context(ring.last_use.running())
        # 5.
        await stack.enter_async_context(TemplateWatch(library, partial(run_bootstrap, settings)).running())
        app.state.rooms = Rooms(
            settings=settings,
            library=library,
            tasks=core.service,
            batches=core.batches,
            keys=ring,
            key_store=key_store,
            audit=audit_store,
            wrong_keys=WrongKeys(settings.wrong_keys_per_minute),
            request_rate=RequestRate(),
        )
        yield


def _operation_id(route: APIRoute) -> str:
    """Short names for generated clients."""
    return route.name


@cache
def _app() -> FastAPI:
    """For a bare `uvicorn api.main:app`: our settings and our log lines, which replace uvicorn's access log."""
    settings = load_settings()
    configure_logging(settings.log_level)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    return create_app(settings)


def __getattr__(name: str) -> Any:
    """`app`, made when somebody asks for it (PEP 562): importing this module must not read the environment."""
    if name == "app":
        return _app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
