from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, temporary_settings

from ai_task_orchestra.worker.patient_client import PatientClient, is_unreachable


@pytest.fixture(autouse=True)
def api_url() -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: "http://prefect.test/api", PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
        yield


class Server:
    """Gives its answers one after the other, the last one for ever; an exception is raised."""

    def __init__(self, *answers: int | Exception) -> None:
        self.answers = list(answers)
        self.requests = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, json={})


async def asked(server: Server, patience_seconds: float) -> httpx.Response:
    client = PatientClient(patience_seconds, transport=httpx.MockTransport(server))
    async with client:
        return await client.request("GET", "/health")


async def test_an_outage_is_ridden_out() -> None:
    server = Server(httpx.ConnectError("refused"), 503, httpx.ReadTimeout("late"), 200)
    assert (await asked(server, 60)).status_code == 200
    assert server.requests == 4


async def test_without_patience_the_first_failure_is_told() -> None:
    server = Server(httpx.ConnectError("refused"))
    with pytest.raises(httpx.ConnectError):
        await asked(server, 0)
    assert server.requests == 1


async def test_a_connection_that_was_closed_meanwhile_is_no_outage() -> None:
    server = Server(httpx.RemoteProtocolError("closed"), 200)
    assert (await asked(server, 0)).status_code == 200
    server = Server(httpx.RemoteProtocolError("closed"))
    with pytest.raises(httpx.RemoteProtocolError):
        await asked(server, 0)
    assert server.requests == 2


async def test_a_refusal_is_not_tried_again() -> None:
    server = Server(404)
    with pytest.raises(httpx.HTTPStatusError) as failure:
        await asked(server, 60)
    assert not is_unreachable(failure.value)
    assert server.requests == 1
