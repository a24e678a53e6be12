"""Which level of isolation is used, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.isolation.offer import Offer, isolation_report, level_for, machine_offer, what_is_open
from ai_task_orchestra.settings import Settings

EVERYTHING = Offer(landlock=7, seccomp="", namespaces="", accounts=1_900_000_000)
WITHOUT_NAMESPACES = replace(EVERYTHING, namespaces="unshare: Operation not permitted", accounts=0)
NOTHING = Offer(landlock=0, seccomp="unknown kind of machine", namespaces="not on this system", accounts=0)


@pytest.mark.parametrize(
    ("offer", "highest"),
    [
        (EVERYTHING, 2),
        (WITHOUT_NAMESPACES, 1),
        (replace(EVERYTHING, landlock=0), 2),
        (replace(WITHOUT_NAMESPACES, landlock=1), 0),
        (replace(EVERYTHING, seccomp="refused"), 0),
        (NOTHING, 0),
    ],
)
def test_the_highest_level_that_works_is_the_default(offer: Offer, highest: int) -> None:
    assert offer.highest == highest
    assert level_for("auto", offer) == highest


@pytest.mark.parametrize(
    ("wish", "offer", "level"),
    [
        ("0", EVERYTHING, 0),
        ("1", EVERYTHING, 1),
        ("2", EVERYTHING, 2),
        ("1+", EVERYTHING, 2),
        ("2+", EVERYTHING, 2),
        ("1+", WITHOUT_NAMESPACES, 1),
        ("1+", replace(EVERYTHING, landlock=0), 2),
    ],
)
def test_a_level_can_be_forced_or_be_the_least(wish: str, offer: Offer, level: int) -> None:
    assert level_for(wish, offer) == level


@pytest.mark.parametrize(
    ("wish", "offer"),
    [
        ("1", NOTHING),
        ("1+", NOTHING),
        ("2", WITHOUT_NAMESPACES),
        ("2+", WITHOUT_NAMESPACES),
        ("1", replace(EVERYTHING, landlock=0)),
    ],
)
def test_a_level_that_is_not_there_is_refused(wish: str, offer: Offer) -> None:
    with pytest.raises(ConfigurationError, match=r"level .*\(ORCHESTRA_ISOLATION\)"):
        level_for(wish, offer)


def test_what_is_open_grows_as_the_level_falls() -> None:
    assert what_is_open(2, EVERYTHING) == ()
    assert what_is_open(2, replace(EVERYTHING, landlock=4)) == ("abstract Unix sockets, with network",)
    assert len(what_is_open(1, EVERYTHING)) == 1
    assert len(what_is_open(1, WITHOUT_NAMESPACES)) == 2
    assert len(what_is_open(1, replace(WITHOUT_NAMESPACES, landlock=4))) == 3
    assert "files and processes of the worker's account" in what_is_open(0, NOTHING)
    assert "files that every account may read" in what_is_open(0, EVERYTHING)


def test_the_report_names_level_and_mend() -> None:
    settings = Settings(_env_file=None)
    best = isolation_report(settings, EVERYTHING)
    assert (best.level, best.highest, best.own_account, best.open, best.mend) == (2, 2, True, (), None)

    middle = isolation_report(settings, WITHOUT_NAMESPACES)
    assert (middle.level, middle.own_account) == (1, False)
    assert "Operation not permitted" in str(middle.mend)

    forced = isolation_report(Settings(_env_file=None, isolation="0"), EVERYTHING)
    assert (forced.level, forced.highest) == (0, 2)
    assert "without it the level is 2" in str(forced.mend)

    impossible = isolation_report(Settings(_env_file=None, isolation="2+"), NOTHING)
    assert impossible.level is None
    assert "ORCHESTRA_ISOLATION" in str(impossible.mend)


def test_this_machine_is_tried_only_once() -> None:
    assert machine_offer() is machine_offer()
