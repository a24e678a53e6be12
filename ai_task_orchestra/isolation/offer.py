"""What this machine has for keeping programs apart, and what that amounts to."""

from __future__ import annotations

import functools
import marshal
import subprocess
from dataclasses import dataclass
from typing import Final

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.isolation.helper import argv_of
from ai_task_orchestra.isolation.landlock import FIRST_USABLE_VERSION, SCOPED_VERSION
from ai_task_orchestra.settings import Settings

_TRIAL_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Offer:
    """What the kernel lets us do.

    `landlock` is its version (0: none); `seccomp` and `namespaces` are empty, or the reason why they can't be used.
    `accounts`: the first of the account numbers that tasks may have; 0 where only our own can be used.
    """

    landlock: int
    seccomp: str
    namespaces: str
    accounts: int

    @property
    def highest(self) -> int:
        """The highest level that works here."""
        if self.seccomp:
            return 0
        if not self.namespaces:
            return 2
        return 1 if self.landlock >= FIRST_USABLE_VERSION else 0


@dataclass(frozen=True)
class IsolationReport:
    """How programs of tasks run on this machine with these settings.

    Attributes:
        level: 0, 1 or 2; None if the settings ask for more than there is, and no program is run.
        highest: the highest level that works here.
        own_account: every task's programs run under an account number of their own.
        open: what a program can reach nevertheless, one phrase each; nothing at level 2.
        mend: what would raise the level, as a sentence; None at the highest.
    """

    level: int | None
    highest: int
    own_account: bool
    open: tuple[str, ...]
    mend: str | None


@functools.cache
def machine_offer() -> Offer:
    """Try it out, once per process (50 ms); processes that are forked afterwards know it."""
    nothing = Offer(0, "it could not be tried", "it could not be tried", 0)
    argv = argv_of("ai_task_orchestra.isolation.trial")
    try:
        done = subprocess.run(argv, capture_output=True, timeout=_TRIAL_SECONDS, env={}, cwd="/")
        return Offer(**marshal.loads(done.stdout))  # noqa: S302 - written by ourselves
    except (OSError, subprocess.TimeoutExpired, ValueError, EOFError, TypeError):
        return nothing


def level_for(wish: str, offer: Offer) -> int:
    """The level to use: `auto` is the highest, `1` exactly that one, `1+` the highest, but at least that one.

    Raises:
        ConfigurationError: the machine does not offer what is asked for.
    """
    if wish == "auto":
        return offer.highest
    wanted = int(wish.removesuffix("+"))
    possible = wanted <= offer.highest and not (wanted == 1 and offer.landlock < FIRST_USABLE_VERSION)
    if not possible and not (wish.endswith("+") and offer.highest > wanted):
        raise ConfigurationError(
            f"programs are to run at isolation level {wish} (ORCHESTRA_ISOLATION), "
            f"and this machine offers level {offer.highest}"
        )
    return max(wanted, offer.highest) if wish.endswith("+") else wanted


def what_is_open(level: int, offer: Offer) -> tuple[str, ...]:
    """What a program can reach at this level that it has no business with, one phrase each."""
    if level:
        return _open_when_confined(level, offer)
    files = "files that every account may read" if offer.accounts else "files and processes of the worker's account"
    return (files, "the network, whatever the template says", "the list of all processes")


def _open_when_confined(level: int, offer: Offer) -> tuple[str, ...]:
    scoped, shared = offer.landlock >= SCOPED_VERSION, not offer.accounts
    found = {
        "the list of all processes, with their command lines": level == 1,
        "permissions and times (not the content) of the worker account's files": level == 1 and shared,
        "signals to other processes of the worker's account": level == 1 and shared and not scoped,
        "abstract Unix sockets, with network": not scoped and not (level == 1 and shared),
    }
    return tuple(phrase for phrase, is_open in found.items() if is_open)


def isolation_report(settings: Settings, offer: Offer | None = None) -> IsolationReport:
    """How programs run here; `offer` is found out if it is not given."""
    offer = offer or machine_offer()
    try:
        level: int | None = level_for(settings.isolation, offer)
    except ConfigurationError:
        level = None
    still_open = () if level is None else what_is_open(level, offer)
    return IsolationReport(level, offer.highest, offer.accounts > 0, still_open, _mend(level, offer))


def _mend(level: int | None, offer: Offer) -> str | None:
    if level is None:
        return "set ORCHESTRA_ISOLATION to what the machine offers, or let the machine offer more: " + _why(offer)
    if level < offer.highest:
        return f"ORCHESTRA_ISOLATION asks for level {level}; without it the level is {offer.highest}"
    return None if level == 2 else _why(offer)


def _why(offer: Offer) -> str:
    if offer.seccomp:
        return f"seccomp can't be used ({offer.seccomp})"
    if offer.namespaces:
        return (
            f"namespaces can't be used ({offer.namespaces}); allow user namespaces for this account "
            "(kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, "
            "user.max_user_namespaces, the container's seccomp profile), or start the worker as root"
        )
    return f"Landlock is of version {offer.landlock}, a newer kernel has more"
