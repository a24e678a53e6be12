"""Which keys are known, for how long a look-up is believed, and what wrong ones cost."""

from __future__ import annotations

import hmac
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra import api_keys
from ai_task_orchestra.api_keys import generate_key, key_hash
from api.identity import Identity
from api.key_ring import LAST_USE_STEP_SECONDS, MAX_REMEMBERED, TRUST_SECONDS, KeyRing, LastUse
from tests.support.api_app import KEY, settings_for
from tests.support.task_double import InMemoryKeys


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stored() -> InMemoryKeys:
    return InMemoryKeys()


@pytest.fixture
def ring(tmp_path: Path, stored: InMemoryKeys, clock: Clock) -> KeyRing:
    return KeyRing(settings_for(tmp_path, api_key=None), stored, clock=clock)


async def test_a_revocation_counts_within_five_seconds(ring: KeyRing, stored: InMemoryKeys, clock: Clock) -> None:
    key = generate_key()
    stored.by_hash[key_hash(key)] = Identity("ci")
    assert await ring.identify(key.encode()) == Identity("ci")
    stored.by_hash.clear()
    assert await ring.identify(key.encode()) is not None
    clock.now += TRUST_SECONDS
    assert await ring.identify(key.encode()) is None
    assert TRUST_SECONDS < 5


async def test_a_revocation_of_our_own_counts_at_once(ring: KeyRing, stored: InMemoryKeys) -> None:
    key = generate_key()
    stored.by_hash[key_hash(key)] = Identity("ci")
    assert await ring.identify(key.encode()) is not None
    stored.by_hash.clear()
    ring.forget()
    assert await ring.identify(key.encode()) is None


async def test_expiry_counts_at_once_also_for_a_remembered_key(ring: KeyRing, stored: InMemoryKeys) -> None:
    key = generate_key()
    past = datetime.now(UTC) - timedelta(seconds=1)
    stored.by_hash[key_hash(key)] = Identity("ci", expires_at=past)
    assert await ring.identify(key.encode()) is None


async def test_the_database_is_asked_once_and_only_about_plausible_keys(ring: KeyRing, stored: InMemoryKeys) -> None:
    key = generate_key()
    mistyped = key[:-1] + ("a" if key[-1] != "a" else "b")
    for presented in (b"guess", b"ato_" + b"a" * 28, b"\xff", mistyped.encode(), key.encode(), key.encode()):
        await ring.identify(presented)
    assert stored.asked == [key_hash(key)]


async def test_a_flood_of_wrong_keys_does_not_make_it_forget_a_right_one(ring: KeyRing, stored: InMemoryKeys) -> None:
    right = generate_key()
    stored.by_hash[key_hash(right)] = Identity("ci")
    await ring.identify(right.encode())
    for _ in range(MAX_REMEMBERED + 10):
        await ring.identify(generate_key().encode())
    await ring.identify(right.encode())
    assert stored.asked.count(key_hash(right)) == 1
    assert len(ring._wrong) == MAX_REMEMBERED


async def test_the_key_file_opens_the_api_and_may_be_renewed(ring: KeyRing, tmp_path: Path, clock: Clock) -> None:
    assert await ring.identify(b"first-key") is None
    for key in ("first-key", "second-key"):
        (tmp_path / "api-key").write_text(f"{key}\n")
        clock.now += TRUST_SECONDS
        assert await ring.identify(key.encode()) == Identity("key-file")
    assert await ring.identify(b"first-key") is None


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
async def test_a_blank_configured_key_opens_nothing(tmp_path: Path, stored: InMemoryKeys, blank: str) -> None:
    (tmp_path / "api-key").write_text(blank)
    ring = KeyRing(settings_for(tmp_path, api_key=blank), stored)
    assert await ring.identify(blank.encode()) is None
    assert await ring.has_any() is False


async def test_an_unreadable_key_file_opens_nothing(ring: KeyRing, tmp_path: Path) -> None:
    (tmp_path / "api-key").write_bytes(b"\xff\xfe")
    assert await ring.identify(b"\xff\xfe") is None


class TestTimingOfWrongKeys:
    """Not measured but made sure of: every wrong key of the right shape takes the same steps."""

    @pytest.fixture
    def steps(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
        """What was compared in constant time, and how long it was."""
        seen: list[tuple[str, int]] = []
        compare = hmac.compare_digest

        def watched(one: Any, other: Any) -> bool:
            seen.append(("compare", len(one)))
            return compare(one, other)

        monkeypatch.setattr(hmac, "compare_digest", watched)
        return seen

    async def test_it_does_not_matter_how_much_of_a_key_is_right(
        self, tmp_path: Path, stored: InMemoryKeys, steps: list[tuple[str, int]]
    ) -> None:
        (tmp_path / "api-key").write_text(generate_key())
        ring = KeyRing(settings_for(tmp_path), stored)
        known = generate_key()
        stored.by_hash[key_hash(known)] = Identity("ci")
        await ring.identify(generate_key().encode())
        usual, asked = list(steps), len(stored.asked)
        assert usual == [("compare", 32), ("compare", 32)]
        for length in (4, 8, 20, 25):
            steps.clear()
            wrong = key_that_begins_with(known[:length])
            assert await ring.identify(wrong.encode()) is None
            asked += 1
            assert (list(steps), len(stored.asked)) == (usual, asked)

    @pytest.mark.parametrize("configured", [None, KEY])
    @pytest.mark.parametrize("file", [None, "ato_something"])
    async def test_it_does_not_matter_which_keys_are_configured(
        self,
        tmp_path: Path,
        stored: InMemoryKeys,
        steps: list[tuple[str, int]],
        configured: str | None,
        file: str | None,
    ) -> None:
        if file:
            (tmp_path / "api-key").write_text(file)
        ring = KeyRing(settings_for(tmp_path, api_key=configured), stored)
        assert await ring.identify(b"operator-key-for-test_") is None
        assert steps == [("compare", 32), ("compare", 32)]


def key_that_begins_with(beginning: str) -> str:
    """A key with a checksum that fits, and a beginning of somebody else's."""
    head = beginning + generate_key()[len(beginning) : api_keys.KEY_LENGTH - api_keys.CHECKSUM_LENGTH]
    return head + api_keys._checksum(head)


class TestLastUse:
    async def test_a_use_is_written_in_the_background_and_at_most_once_a_minute(
        self, ring: KeyRing, stored: InMemoryKeys, clock: Clock
    ) -> None:
        key, key_id = generate_key(), uuid.uuid4()
        stored.by_hash[key_hash(key)] = Identity("ci", key_id=key_id)
        await ring.identify(key.encode())
        assert stored.used == {}
        await ring.last_use.write()
        first = stored.used[key_id]

        await ring.identify(key.encode())
        await ring.last_use.write()
        assert stored.used[key_id] == first

        clock.now += LAST_USE_STEP_SECONDS
        await ring.last_use.write()
        assert stored.used[key_id] > first

    async def test_nothing_is_written_again_without_another_use(self, stored: InMemoryKeys, clock: Clock) -> None:
        uses = LastUse(stored, clock)
        uses.note(uuid.uuid4())
        await uses.write()
        stored.used.clear()
        clock.now += LAST_USE_STEP_SECONDS
        await uses.write()
        assert stored.used == {}

    async def test_what_is_noted_is_written_when_the_api_ends(self, stored: InMemoryKeys) -> None:
        uses, key_id = LastUse(stored), uuid.uuid4()
        async with uses.running():
            uses.note(key_id)
        assert key_id in stored.used

    async def test_a_database_that_is_away_loses_no_use(
        self, stored: InMemoryKeys, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uses, key_id = LastUse(stored, clock), uuid.uuid4()
        uses.note(key_id)

        async def away(_: Any) -> None:
            raise ConnectionRefusedError

        with monkeypatch.context() as patch:
            patch.setattr(stored, "note_used", away)
            await uses._try()
        await uses.write()
        assert key_id in stored.used
