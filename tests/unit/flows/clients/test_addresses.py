"""Which addresses count as the public internet."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from ai_task_orchestra.errors import StepInputError
from flows.clients.addresses import is_public, resolve


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "198.18.0.1",
        "192.0.2.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe90::1",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:169.254.169.254",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "2002:7f00:1::1",
        "2001:0:7f00:1::8080:8080",
        "2001:0:808:808::5601:5601",
        "2606:4700::5efe:7f00:1",
        "2606:4700::200:5efe:a9fe:a9fe",
    ],
)
def test_private_addresses_in_any_dress_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "0", "127.1", "localhost", "::1"])
async def test_every_way_to_write_this_machine_is_refused(host: str) -> None:
    with pytest.raises(StepInputError, match="public internet"):
        await resolve(host, 80, allow_private=False, field="url", setting="THE_SETTING")


async def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lookup(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (address, 80)) for address in ("8.8.8.8", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    with pytest.raises(StepInputError):
        await resolve("two.example", 80, allow_private=False, field="url", setting="THE_SETTING")
    assert await resolve("two.example", 80, allow_private=True, field="url", setting="THE_SETTING") == [
        "8.8.8.8",
        "127.0.0.1",
    ]
