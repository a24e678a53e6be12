"""What a seed makes: operations with the seconds after which each begins. The same seed, the same plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, TypeVar

T = TypeVar("T")

#: Templates and how often each is chosen.
_TEMPLATES: Final = {
    "quick": 6,
    "slow": 6,
    "stages": 3,
    "failing": 2,
    "flaky": 2,
    "once": 1,
    "family": 1,
    "asking": 1,
    "stored": 2,
}
#: Faults and how often each is chosen.
_FAULTS: Final = {
    "kill_api": 3,
    "kill_worker": 3,
    "kill_child": 3,
    "kill_prefect": 2,
    "freeze_worker": 3,
    "restart_postgres": 2,
}
#: How many faults a history has.
_FAULT_COUNTS: Final = {0: 3, 1: 5, 2: 3, 3: 1}
#: Workers of the stack, and how many tasks each runs at once.
WORKERS: Final = 2
SLOTS: Final = 2


@dataclass(frozen=True)
class Post:
    """Submit the task `number`. `copies` of the same request are sent at once, which needs a key."""

    at: float
    number: int
    template: str
    seconds: float
    priority: int
    depends_on: tuple[int, ...] = ()
    runs_anyway: bool = False
    keyed: bool = True
    copies: int = 1


@dataclass(frozen=True)
class Batch:
    """Submit several tasks in one call, all or none; they may depend on each other and on earlier ones."""

    at: float
    posts: tuple[Post, ...]
    keyed: bool
    copies: int


@dataclass(frozen=True)
class Change:
    """Give a task another priority."""

    at: float
    number: int
    priority: int


@dataclass(frozen=True)
class Cancel:
    """Cancel a task."""

    at: float
    number: int


@dataclass(frozen=True)
class Look:
    """Read the task `number`, or with None the lists."""

    at: float
    number: int | None


@dataclass(frozen=True)
class Fault:
    """Kill, freeze or restart something.

    `seconds`: for how long a worker is frozen beyond its lease; `busy`: not before the worker runs a step.
    """

    at: float
    name: str
    worker: int
    seconds: float
    busy: bool


Operation = Post | Batch | Change | Cancel | Look | Fault


@dataclass(frozen=True)
class Plan:
    """Operations in the order of their times."""

    seed: int
    operations: tuple[Operation, ...]

    @property
    def posts(self) -> list[Post]:
        """All tasks, those of batches included, in the order of their numbers."""
        found: list[Post] = []
        for operation in self.operations:
            if isinstance(operation, Post):
                found.append(operation)
            elif isinstance(operation, Batch):
                found += operation.posts
        return sorted(found, key=lambda post: post.number)

    @property
    def faults(self) -> list[Fault]:
        return [operation for operation in self.operations if isinstance(operation, Fault)]

    def __str__(self) -> str:
        return "\n".join([f"plan of seed {self.seed}:", *(f"  {operation}" for operation in self.operations)])


def make_plan(seed: int) -> Plan:
    """The plan of a seed."""
    random = Random(f"history {seed}")  # noqa: S311
    faults = _chosen(random, _FAULT_COUNTS)
    pressed = not faults and random.random() < 0.7
    posts = list(_pressing_posts(random) if pressed else _posts(random))
    operations: list[Operation] = [*_grouped(random, posts)]
    count = len(posts)
    operations += [
        Change(_moment(random, 0.2, 3.0), random.randrange(count), random.randint(1, 10))
        for _ in range(random.randint(2, 5))
    ]
    operations += [Cancel(_moment(random, 0.1, 4.0), random.randrange(count)) for _ in range(random.randint(1, 4))]
    operations += [
        Look(_moment(random, 0.1, 4.0), random.choice([None, random.randrange(count)]))
        for _ in range(random.randint(3, 7))
    ]
    operations += [_fault(random) for _ in range(faults)]
    return Plan(seed, tuple(sorted(operations, key=lambda operation: operation.at)))


def _fault(random: Random) -> Fault:
    return Fault(
        at=_moment(random, 0.3, 3.0),
        name=_chosen(random, _FAULTS),
        worker=random.randrange(WORKERS),
        seconds=_moment(random, 0.5, 3.0),
        busy=random.random() < 0.7,
    )


def _posts(random: Random) -> Iterator[Post]:
    """Tasks of all kinds, many of them waiting for earlier ones."""
    count = random.randint(6, 11)
    times = sorted(_moment(random, 0.0, 2.5) for _ in range(count))
    for number, at in enumerate(times):
        yield _post(random, at, number, waits=random.random() < 0.45)


def _post(random: Random, at: float, number: int, *, waits: bool) -> Post:
    keyed = random.random() < 0.7
    known = random.sample(range(number), min(number, random.randint(1, 3))) if waits else []
    template = _chosen(random, _TEMPLATES)
    return Post(
        at=at,
        number=number,
        template=template,
        seconds=0.0 if template in ("quick", "failing", "flaky") else _moment(random, 0.2, 2.0),
        priority=random.randint(1, 10),
        depends_on=tuple(sorted(known)),
        runs_anyway=random.random() < 0.3,
        keyed=keyed,
        copies=random.choice([1, 1, 1, 2, 5]) if keyed else 1,
    )


def _pressing_posts(random: Random) -> Iterator[Post]:
    """As many long tasks as there are slots, then a press of quick ones behind them: who comes next shows."""
    for number in range(WORKERS * SLOTS):
        yield Post(_moment(random, 0.0, 0.1), number, "slow", _moment(random, 1.5, 2.2), 10)
    for number in range(WORKERS * SLOTS, WORKERS * SLOTS + random.randint(7, 10)):
        template = random.choice(["quick", "quick", "slow"])
        yield Post(_moment(random, 0.2, 0.7), number, template, 0.2, random.randint(1, 10))


def _grouped(random: Random, posts: list[Post]) -> Iterator[Operation]:
    """Sometimes the last few tasks come in one call."""
    if len(posts) > 6 and random.random() < 0.4:
        size = random.randint(3, 6)
        keyed = random.random() < 0.7
        yield Batch(posts[-size].at, tuple(posts[-size:]), keyed, random.choice([1, 1, 3]) if keyed else 1)
        posts = posts[:-size]
    yield from posts


def _chosen(random: Random, weights: dict[T, int]) -> T:
    return random.choices(list(weights), list(weights.values()))[0]


def _moment(random: Random, first: float, last: float) -> float:
    """Seconds, rounded: a plan is to be read by people."""
    return round(random.uniform(first, last), 2)
