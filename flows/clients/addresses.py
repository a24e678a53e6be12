"""Which network addresses a request that a user asked for may reach."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

from ai_task_orchestra.errors import StepError, StepInputError

Address = IPv4Address | IPv6Address

# IPv6 networks whose addresses carry an IPv4 address in their last 32 bits: a gateway would take us there.
_TRANSLATED: Final = tuple(
    IPv6Network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")
)
_ISATAP: Final = (0x5EFE, 0x02005EFE)


def is_public(address: Address) -> bool:
    """Whether the address, and each one hidden in it, is one of the public internet."""
    return all(_is_public(each) for each in _with_embedded(address))


def _is_public(address: Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not (isinstance(address, IPv6Address) and address.is_site_local)
    )


def _with_embedded(address: Address) -> Iterator[Address]:
    """The address itself, unless it only stands for another one, and those inside it."""
    if isinstance(address, IPv4Address):
        yield address
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
        return
    last = IPv4Address(int(address) & 0xFFFFFFFF)
    if any(address in network for network in _TRANSLATED):
        yield last
        return
    yield address
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        yield last


async def resolve(host: str, port: int, *, allow_private: bool, field: str, setting: str) -> list[str]:
    """The addresses of a host, looked up once: whoever connects uses these, so that no second answer can differ.

    `field` and `setting` are named in the refusal: where the host came from, and what would allow it.

    Raises:
        StepInputError: one of them is not public, and that is not allowed.
        StepError: the name can't be resolved; retryable.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise StepError("the host's name can't be resolved", retryable=True) from exc
    addresses = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
    if not allow_private and not all(is_public(ip_address(address)) for address in addresses):
        raise StepInputError(f"{field}: the host is not on the public internet ({setting})")
    return addresses
