import asyncio
import random
import socket
import struct

import pytest

from ai_task_orchestra.worker.child_link import MAX_MESSAGE_BYTES, ChildLink, Decoder, LinkBrokenError, encode


def test_messages_survive_however_they_are_cut() -> None:
    messages: list[dict[str, object]] = [
        {"event": "ready"},
        {},
        {"text": "ünïcode \ud800 \x00", "number": 1.5, "list": [None, True]},
    ]
    data = b"".join(encode(message) for message in messages)
    for seed in range(50):
        cuts = sorted(random.Random(seed).sample(range(len(data)), 8))  # noqa: S311
        decoder = Decoder()
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        assert [message for piece in pieces for message in decoder.feed(piece)] == messages
        assert not decoder.incomplete


def test_a_half_written_message_is_known_to_be_incomplete() -> None:
    decoder = Decoder()
    assert decoder.feed(encode({"event": "ready"})[:-1]) == []
    assert decoder.incomplete


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff",
        struct.pack(">I", 3) + b"abc",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 2) + b"\xff\xfe",
    ],
    ids=["length", "no JSON", "no object", "no text"],
)
def test_garbage_breaks_the_link(garbage: bytes) -> None:
    with pytest.raises(LinkBrokenError):
        Decoder().feed(garbage)


def test_a_message_that_nobody_would_take_is_not_sent() -> None:
    with pytest.raises(LinkBrokenError, match="too large"):
        encode({"text": "x" * MAX_MESSAGE_BYTES})


async def test_large_messages_pass_both_ways_at_once() -> None:
    left, right = (ChildLink(end) for end in socket.socketpair())
    big = {"text": "x" * 2_000_000}
    _, _, one, two = await asyncio.gather(left.send(big), right.send(big), left.receive(), right.receive())
    assert one == two == big
    left.close()
    assert await right.receive() is None
    right.close()


async def test_an_end_in_the_middle_of_a_message_breaks_the_link() -> None:
    ours, theirs = socket.socketpair()
    link = ChildLink(ours)
    theirs.sendall(encode({"event": "ready"}) + encode({"event": "accepted"})[:7])
    theirs.close()
    assert await link.receive() == {"event": "ready"}
    with pytest.raises(LinkBrokenError, match="middle"):
        await link.receive()
    link.close()


async def test_sending_to_someone_who_is_gone_breaks_the_link() -> None:
    ours, theirs = socket.socketpair()
    link = ChildLink(ours)
    theirs.close()
    with pytest.raises(LinkBrokenError):
        await link.send({"event": "ready"})
    assert await link.receive() is None
    link.close()


async def test_after_the_end_was_said_the_other_side_may_still_speak() -> None:
    left, right = (ChildLink(end) for end in socket.socketpair())
    left.end()
    assert await right.receive() is None
    await right.send({"event": "finished"})
    assert await left.receive() == {"event": "finished"}
    left.close()
    right.close()
