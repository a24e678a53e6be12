"""What a flow run's state means for its task."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_task_orchestra.protocol import STATE_HELD, STATE_QUEUED
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
    MAX_LOSSES,
    MOVE,
    RELEASE,
    Again,
    Finish,
    Show,
    Standing,
    contradicts,
    decide,
    error_of,
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


def test_a_lost_attempt_is_followed_by_another_until_the_third() -> None:
    assert decide(Standing(losses=0), CRASHED) == Again(timedelta(0), lost=True)
    assert decide(Standing(losses=1), CRASHED) == Again(timedelta(0), lost=True)
    assert decide(Standing(losses=2), CRASHED) == Finish("failed", "crashed")
    assert decide(Standing(on_worker_loss="fail"), CRASHED) == Finish("failed", "crashed")


def test_a_failed_attempt_is_followed_by_as_many_as_the_template_says() -> None:
    task = Standing(retries=2, retry_delay_seconds=90.0)
    assert decide(task, FAILED) == Again(timedelta(seconds=90), lost=False)
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


@given(standings, st.lists(st.sampled_from([FAILED, CRASHED]), min_size=12, max_size=12))
def test_attempts_come_to_an_end(task: Standing, ends: list[str]) -> None:
    failures = losses = 0
    for kind in ends:
        decision = decide(
            Standing(failures=failures, losses=losses, retries=task.retries, on_worker_loss=task.on_worker_loss), kind
        )
        if isinstance(decision, Finish):
            return
        assert isinstance(decision, Again)
        failures, losses = (failures, losses + 1) if decision.lost else (failures + 1, losses)
        assert losses < MAX_LOSSES
        assert failures <= task.retries
    raise AssertionError("twelve attempts were not enough")


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
    assert outcome(RUNNING) is None
