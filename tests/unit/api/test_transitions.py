"""What a flow run's state means for its task."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_task_orchestra.protocol import STATE_HANDED_BACK, STATE_HELD, STATE_QUEUED
from api.models import Phase
from api.prefect_types import (
    CANCELLED,
    CANCELLING,
    COMPLETED,
    CRASHED,
    FAILED,
    FINAL_STATES,
    PAUSED,
    PENDING,
    RUNNING,
    SCHEDULED,
    RunState,
)
from api.transitions import (
    MAX_HAND_BACKS,
    MAX_LOSSES,
    MOVE,
    RELEASE,
    Again,
    Ending,
    Finish,
    Show,
    Standing,
    backoff,
    contradicts,
    decide,
    error_of,
    jittered,
    outcome,
    phase_of,
    transition_id,
)

RUN = uuid.uuid4()
ALL_STATES = (SCHEDULED, PENDING, PAUSED, RUNNING, CANCELLING, COMPLETED, FAILED, CRASHED, CANCELLED)


def state(kind: str, name: str = "Any", **fields: object) -> RunState:
    return RunState(uuid.uuid4(), kind, name, None, datetime.now(UTC), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "status"),
    [(SCHEDULED, "queued"), (PENDING, "queued"), (PAUSED, "queued"), (RUNNING, "running"), (CANCELLING, "running")],
)
@pytest.mark.parametrize("cancel_requested", [False, True])
def test_what_is_not_over_is_shown_as_the_contract_says(kind: str, status: str, cancel_requested: bool) -> None:
    assert decide(Standing(cancel_requested=cancel_requested), kind) == Show(status)


def test_completed_work_stays_completed_even_if_it_was_to_be_cancelled() -> None:
    assert decide(Standing(), COMPLETED) == Finish("completed")
    assert decide(Standing(cancel_requested=True), COMPLETED) == Finish("completed")


@pytest.mark.parametrize("kind", sorted(FINAL_STATES))
def test_a_cancellation_that_was_promised_is_kept(kind: str) -> None:
    assert decide(Standing(cancel_requested=True, cancel_promised=True), kind) == Finish("cancelled")


def test_a_lost_attempt_is_followed_by_another_until_the_third() -> None:
    assert decide(Standing(losses=0), CRASHED) == Again(timedelta(0), "lost")
    assert decide(Standing(losses=1), CRASHED) == Again(timedelta(0), "lost")
    assert decide(Standing(losses=2), CRASHED) == Finish("failed", "poison")
    assert decide(Standing(on_worker_loss="fail"), CRASHED) == Finish("failed", "crashed")


def test_a_failed_attempt_is_followed_by_as_many_as_the_template_says() -> None:
    task = Standing(retries=2, retry_delay_seconds=90.0)
    assert decide(task, FAILED) == Again(timedelta(seconds=90), "failed")
    assert decide(Standing(retries=2, failures=2), FAILED) == Finish("failed", "failed")
    assert decide(Standing(), FAILED) == Finish("failed", "failed")


standings = st.builds(
    Standing,
    cancel_requested=st.booleans(),
    failures=st.integers(0, 5),
    losses=st.integers(0, 5),
    retries=st.integers(0, 5),
    on_worker_loss=st.sampled_from(["rerun", "fail"]),
)


@given(standings, st.sampled_from(ALL_STATES))
def test_a_final_state_always_ends_the_task_or_the_attempt_and_no_other_does(task: Standing, kind: str) -> None:
    decision = decide(task, kind)
    assert isinstance(decision, Show) == (kind not in FINAL_STATES)
    if isinstance(decision, Finish):
        assert decision.status in ("completed", "failed", "cancelled")


endings = st.builds(
    Ending,
    handed_back=st.booleans(),
    retryable=st.sampled_from([True, None]),
    step=st.sampled_from(["", "a"]),
    step_retries=st.integers(0, 2),
)


@given(
    st.builds(Standing, retries=st.integers(0, 3)),
    st.lists(st.tuples(st.booleans(), endings), min_size=35, max_size=35),
)
def test_attempts_come_to_an_end(task: Standing, ends: list[tuple[bool, Ending]]) -> None:
    for crashed, ending in ends:
        decision = decide(
            task, CRASHED if crashed else FAILED, replace(ending, handed_back=ending.handed_back and crashed)
        )
        if isinstance(decision, Finish):
            return
        assert isinstance(decision, Again)
        counted = decision.counted(task)
        task = replace(task, **{name: value or {} for name, value in counted.items()})
        assert task.losses < MAX_LOSSES
        assert task.failures <= task.retries
    raise AssertionError("more attempts than all the counts together allow")


def test_a_run_that_a_stopping_worker_hands_back_is_no_loss() -> None:
    handed_back = Ending(handed_back=True)
    assert decide(Standing(losses=2), CRASHED, handed_back) == Again(timedelta(0), "handed_back")
    assert Again(timedelta(0), "handed_back").counted(Standing(losses=2, hand_backs=4)) == {"hand_backs": 5}
    assert decide(Standing(on_worker_loss="fail"), CRASHED, handed_back) == Finish("failed", "crashed")


def test_a_run_that_is_handed_back_without_end_counts_as_lost() -> None:
    assert decide(Standing(hand_backs=MAX_HAND_BACKS), CRASHED, Ending(handed_back=True)) == Again(timedelta(0), "lost")


def test_a_steps_own_retries_come_first_and_each_retry_of_the_task_renews_them() -> None:
    ending = Ending(retryable=True, step="a", step_retries=2, step_retry_delay_seconds=60)
    task = Standing(retries=1, retry_delay_seconds=5)
    causes = []
    for _ in range(5):
        decision = decide(task, FAILED, ending)
        assert isinstance(decision, Again)
        causes.append((decision.cause, decision.delay.total_seconds()))
        task = replace(task, **{name: value or {} for name, value in decision.counted(task).items()})
    assert causes == [
        ("step_failed", 60),
        ("step_failed", 120),
        ("failed", 5),
        ("step_failed", 60),
        ("step_failed", 120),
    ]
    assert decide(task, FAILED, ending) == Finish("failed", "failed")


def test_what_cannot_help_is_not_retried() -> None:
    ending = Ending(retryable=False, step="a", step_retries=2)
    assert decide(Standing(retries=2), FAILED, ending) == Finish("failed", "failed")


def test_the_pause_doubles_up_to_an_hour_or_what_the_template_says() -> None:
    assert [backoff(60, used).total_seconds() for used in (0, 1, 2, 6, 50)] == [60, 120, 240, 3600, 3600]
    assert [backoff(7200, used).total_seconds() for used in (0, 1)] == [7200, 7200]
    assert backoff(0, 5) == timedelta(0)


def test_retries_come_a_little_later_by_chance_and_never_earlier() -> None:
    waits = {jittered(timedelta(seconds=100)) for _ in range(50)}
    assert timedelta(seconds=100) <= min(waits) <= max(waits) <= timedelta(seconds=110)
    assert len(waits) > 1
    assert jittered(timedelta(0)) == timedelta(0)


def test_a_report_says_which_step_failed_and_what_retries_it_has() -> None:
    report = {
        "error": {"type": "git_error", "message": "no answer", "step": "clone"},
        "retryable": True,
        "step_retry": {"retries": 2, "delay_seconds": 60},
    }
    assert Ending.of(state(FAILED), report) == Ending(False, True, "clone", 2, 60)
    assert Ending.of(state(CRASHED, STATE_HANDED_BACK), None) == Ending(handed_back=True)


@pytest.mark.parametrize(
    "report",
    [
        {"error": "text", "step_retry": [], "retryable": 1},
        {"error": {"step": 3}, "step_retry": {"retries": "2", "delay_seconds": float("nan")}},
        {"step_retry": {"delay_seconds": 1e300}},
    ],
)
def test_nonsense_in_a_report_is_not_believed(report: dict[str, object]) -> None:
    assert Ending.of(state(FAILED), report) == Ending()


@given(standings, st.sampled_from([FAILED, CRASHED, CANCELLED]))
def test_a_task_to_be_cancelled_never_gets_another_attempt(task: Standing, kind: str) -> None:
    asked = Standing(**{**task.__dict__, "cancel_requested": True})
    assert decide(asked, kind) == Finish("cancelled")


def test_the_phase_follows_the_state() -> None:
    assert phase_of(RUN, state(PENDING, STATE_HELD), Phase.CREATING) == Phase.CREATING
    assert phase_of(RUN, state(SCHEDULED, STATE_HELD), Phase.CREATING) == Phase.HELD
    assert phase_of(RUN, state(SCHEDULED, STATE_QUEUED), Phase.HELD) == Phase.READY
    assert phase_of(RUN, state(PENDING, transition_id=transition_id(RUN, RELEASE)), Phase.HELD) == Phase.HELD
    assert phase_of(RUN, state(PENDING, transition_id=transition_id(RUN, MOVE)), Phase.READY) == Phase.READY
    assert phase_of(RUN, state(PENDING), Phase.HELD) == Phase.READY  # somebody started it by hand
    assert phase_of(RUN, state(CANCELLING), Phase.HELD) == Phase.HELD


def test_our_own_transitions_are_told_apart_by_run_and_purpose() -> None:
    other = uuid.uuid4()
    ids = {transition_id(run, purpose) for run in (RUN, other) for purpose in (MOVE, RELEASE)}
    assert len(ids) == 4
    assert transition_id(RUN, MOVE) in ids


def test_an_attempts_own_report_says_why_it_failed() -> None:
    error = {"type": "git_error", "message": "no such branch", "step": "clone"}
    assert error_of(state(FAILED), "failed", {"error": error}) == error
    for useless in (None, {}, {"error": None}, {"error": "text"}, {"error": {"message": "no type"}}):
        assert error_of(state(CRASHED, "Crashed"), "crashed", useless) == {
            "type": "crashed",
            "message": "The flow run ended as Crashed.",
        }


def test_only_a_different_end_contradicts() -> None:
    assert not contradicts("failed", CRASHED)
    assert not contradicts("completed", COMPLETED)
    assert contradicts("completed", CANCELLED)
    assert contradicts("cancelled", COMPLETED)
    assert not contradicts("handed_back", CRASHED)
    assert contradicts("crashed", COMPLETED)
    assert outcome(RUNNING) is None


def test_a_poison_tasks_error_says_so_whatever_its_last_attempt_reported() -> None:
    lost = replace(state(CRASHED, "Crashed"), message="The worker m was lost.")
    report = {"error": {"type": "git_error", "message": "no such branch"}}
    assert error_of(lost, "poison", report) == {
        "type": "poison",
        "message": "The task was interrupted 3 times and is not run again. The last time: The worker m was lost.",
    }
