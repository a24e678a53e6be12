from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.settings import Settings
from ai_task_orchestra.stack.ports import OWN_PORTS, check_ports, own_port
from tests.support.servers import free_port


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def settings(**values: object) -> Settings:
    return Settings(_env_file=None, **{"port": free_port(), "prefect_port": free_port(), **values})


async def test_free_ports_are_fine() -> None:
    await check_ports(settings())


@pytest.mark.parametrize(
    ("field", "variable"), [("port", "ORCHESTRA_PORT"), ("prefect_port", "ORCHESTRA_PREFECT_PORT")]
)
async def test_a_taken_port_is_named_with_the_setting_to_change(
    taken: socket.socket, field: str, variable: str
) -> None:
    port = taken.getsockname()[1]
    with pytest.raises(ConfigurationError, match=rf"port {port} .*{variable}"):
        await check_ports(settings(**{field: port}))


async def test_a_given_prefect_server_needs_no_port(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    await check_ports(settings(prefect_port=port, PREFECT_API_URL="http://elsewhere:4200/api"))


async def test_the_same_port_for_both_is_refused() -> None:
    port = free_port()
    with pytest.raises(ConfigurationError, match="both"):
        await check_ports(settings(port=port, prefect_port=port))


async def test_a_port_that_becomes_free_in_time_is_waited_for(taken: socket.socket) -> None:
    checking = asyncio.create_task(check_ports(settings(port=taken.getsockname()[1]), wait_seconds=10))
    await asyncio.wait([checking], timeout=0.3)
    assert not checking.done()
    taken.close()
    await asyncio.wait_for(checking, 5)


async def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ConfigurationError, match="ORCHESTRA_HOST"):
        await check_ports(settings(host="203.0.113.1"))


def test_our_own_ports_lie_below_those_of_outgoing_connections() -> None:
    assert own_port() in OWN_PORTS
    assert OWN_PORTS[-1] < 32768
