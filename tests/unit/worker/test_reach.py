"""Whether Prefect's machine answers, whatever the server on it does."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ai_task_orchestra.worker.reach import is_reachable
from tests.support.tcp_proxy import closed_to_all


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def _url(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}/api"


async def test_a_server_that_accepts_and_says_nothing_is_reachable(listening: socket.socket) -> None:
    assert await is_reachable(_url(listening), 10)


async def test_a_machine_that_refuses_is_reachable(listening: socket.socket) -> None:
    url = _url(listening)
    listening.close()
    assert await is_reachable(url, 10)


async def test_a_machine_that_does_not_answer_is_not() -> None:
    with closed_to_all() as server:
        assert not await is_reachable(_url(server), 0.2)


async def test_an_unknown_name_is_not() -> None:
    assert not await is_reachable("http://no-such-host.invalid:4200/api", 10)
