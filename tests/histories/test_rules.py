"""The checker is checked: it lets good histories pass, and each rule rejects histories that were made to break it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ai_task_orchestra.protocol import claim_message, queue_name
from tests.histories import rules_answers, rules_order, rules_rows, rules_work
from tests.histories.checker import RULES, Rule, check
from tests.histories.evidence import Run, State
from tests.histories.story import Story

Teller = Callable[[Story], None]
BAD: list[tuple[Rule, Teller]] = []


def breaks(rule: Rule) -> Callable[[Teller], Teller]:
    """Marks a story that must be rejected by `rule`."""

    def mark(tell: Teller) -> Teller:
        BAD.append((rule, tell))
        return tell

    return mark


# --- good histories ---------------------------------------------------------------------------------------------------


def everything_goes_well(story: Story) -> None:
    first = story.done(0)
    story.done(1, "stages", depends_on=[first])
    story.done(2, "stored")
    story.call("list", seen={task: {"status": "completed"} for task in story.tasks})


def work_fails_and_dooms(story: Story) -> None:
    failing = story.post(0, "failing")
    doomed = story.post(1, depends_on=[failing])
    anyway = story.post(2, depends_on=[failing], runs_anyway=True)
    story.work(failing, kind="fail")
    story.ends(failing, "failed")
    story.row(doomed, status="cancelled", error={"type": "dependency_failed"})
    story.work(anyway)
    story.ends(anyway, "completed")
    story.post(3, depends_on=[failing])
    story.calls[-1] = replace(story.calls[-1], outcome="no", code=409, seen={}, accepted={})
    del story.tasks["id-3"]


def a_worker_is_killed(story: Story) -> None:
    task = story.post(0, "slow")
    story.line(task, "start")
    story.fault("kill_worker", worker="w")
    story.lost(task)
    story.work(task, attempt=2)
    story.ends(task, "completed", attempt=2)


def a_worker_is_frozen_and_comes_back(story: Story) -> None:
    task = story.post(0, "stages")
    story.line(task, "start", step="first")
    story.fault("freeze_worker", worker="w", moment="begin")
    story.lost(task)
    for step in ("first", "second"):
        story.work(task, step=step, attempt=2)
    story.ends(task, "completed", attempt=2, worker="other")
    story.shown(task, "completed")
    story.now += 60
    story.fault("freeze_worker", worker="w", moment="end")
    story.line(task, "end", step="first")


def an_answer_is_lost_and_the_post_repeated(story: Story) -> None:
    task = story.done(0)
    story.fault("kill_api")
    story.calls[0] = replace(story.calls[0], outcome="unknown", code=0, seen={}, accepted={})
    story.call("post", seen={task: {"status": "completed"}}, accepted={0: task})


def a_change_is_refused_and_another_accepted(story: Story) -> None:
    task = story.post(0)
    story.call("change", task=task, priority=9)
    story.row(task, priority=9)
    story.work(task)
    story.call("change", task=task, priority=2, outcome="no", code=409)
    story.ends(task, "completed")


def work_was_done_when_the_cancellation_came(story: Story) -> None:
    task = story.post(0)
    story.work(task)
    story.call("cancel", task=task, code=204)
    story.ends(task, "completed")


def work_was_done_and_its_cancellation_promised(story: Story) -> None:
    task = story.post(0)
    story.work(task)
    story.call("cancel", task=task, code=204)
    story.ends(task, "completed")
    story.runs[task, 1] = replace(story.runs[task, 1], type="CANCELLED")
    story.row(task, status="cancelled", result=None)


@pytest.mark.parametrize(
    "tell",
    [
        everything_goes_well,
        work_fails_and_dooms,
        a_worker_is_killed,
        a_worker_is_frozen_and_comes_back,
        an_answer_is_lost_and_the_post_repeated,
        a_change_is_refused_and_another_accepted,
        work_was_done_when_the_cancellation_came,
        work_was_done_and_its_cancellation_promised,
        Story.cancelled,
    ],
)
def test_a_good_history_breaks_no_rule(tell: Teller) -> None:
    story = Story()
    tell(story)
    assert check(story.evidence()) == []


# --- what clients were told -------------------------------------------------------------------------------------------


@breaks(rules_answers.no_server_errors)
def an_internal_error(story: Story) -> None:
    story.call("get", task=story.done(), outcome="unknown", code=500)
    story.fault("kill_api")


@breaks(rules_answers.no_server_errors)
def no_answer_though_nothing_was_broken(story: Story) -> None:
    story.call("get", task=story.done(), outcome="unknown", code=503)


@breaks(rules_answers.accepted_posts_are_one_task)
def a_repeated_post_makes_a_second_task(story: Story) -> None:
    twin = replace(story.tasks[story.done()], id="twin")
    story.tasks[twin.id] = twin


@breaks(rules_answers.accepted_posts_are_one_task)
def two_answers_name_two_tasks(story: Story) -> None:
    story.done()
    story.call("post", seen={"another": {"status": "queued"}}, accepted={0: "another"})


@breaks(rules_answers.accepted_posts_are_one_task)
def an_accepted_task_is_lost(story: Story) -> None:
    del story.tasks[story.done()]


@breaks(rules_answers.accepted_posts_are_one_task)
def a_refused_post_made_a_task(story: Story) -> None:
    story.done()
    story.calls[0] = replace(story.calls[0], outcome="no", code=409, seen={}, accepted={})


@breaks(rules_answers.batches_are_all_or_none)
def half_a_batch_is_accepted(story: Story) -> None:
    story.done(0)
    story.call("batch", outcome="unknown", code=0, numbers=[0, 1])
    story.fault("kill_api")


@breaks(rules_answers.refused_for_a_reason)
def a_post_is_refused_though_its_dependency_completed(story: Story) -> None:
    first = story.done()
    story.post(1, depends_on=[first])
    story.calls[-1] = replace(story.calls[-1], outcome="no", code=409, seen={}, accepted={})


@breaks(rules_answers.accepted_tasks_are_found)
def an_accepted_task_is_not_found(story: Story) -> None:
    story.call("get", task=story.done(), outcome="no", code=404)


@breaks(rules_answers.accepted_tasks_are_found)
def a_list_leaves_a_task_out(story: Story) -> None:
    story.done()
    story.call("list")


@breaks(rules_answers.final_answers_stay)
def a_final_status_changes(story: Story) -> None:
    story.shown(story.done(), "running")


@breaks(rules_answers.final_answers_stay)
def the_row_says_something_else_than_was_shown(story: Story) -> None:
    story.row(story.done(), status="failed")


@breaks(rules_answers.final_answers_stay)
def a_result_changes(story: Story) -> None:
    story.shown(story.done(), "completed", result={"output": "another"})


@breaks(rules_answers.final_answers_stay)
def a_start_time_goes_away(story: Story) -> None:
    task = story.post()
    story.shown(task, "running", started_at="12:00")
    story.shown(task, "queued")


@breaks(rules_answers.cancellations_are_obeyed)
def a_cancelled_task_fails(story: Story) -> None:
    task = story.post(0, "failing")
    story.call("cancel", task=task, code=204)
    story.work(task, kind="fail")
    story.ends(task, "failed")


@breaks(rules_answers.cancellations_are_obeyed)
def a_cancellation_is_refused_and_happens(story: Story) -> None:
    story.call("cancel", task=story.cancelled(), outcome="no", code=409)


@breaks(rules_answers.priorities_are_kept)
def an_accepted_change_is_lost(story: Story) -> None:
    story.call("change", task=story.done(), priority=9)


@breaks(rules_answers.priorities_are_kept)
def a_refused_change_is_made(story: Story) -> None:
    task = story.done()
    story.call("change", task=task, priority=9, outcome="no", code=409)
    story.row(task, priority=9)


@breaks(rules_answers.priorities_are_kept)
def the_earlier_of_two_changes_wins(story: Story) -> None:
    task = story.done()
    story.call("change", task=task, priority=9)
    story.call("change", task=task, priority=2)
    story.row(task, priority=9)


# --- the work ---------------------------------------------------------------------------------------------------------


@breaks(rules_work.only_known_tasks_work)
def somebody_works_for_a_task_of_long_ago(story: Story) -> None:
    story.line("unknown", "start")


@breaks(rules_work.steps_run_in_order)
def a_step_begins_twice_in_one_attempt(story: Story) -> None:
    task = story.post()
    story.line(task, "start")
    story.line(task, "start")


@breaks(rules_work.steps_run_in_order)
def the_second_step_comes_first(story: Story) -> None:
    story.work(story.post(0, "stages"), step="second")


@breaks(rules_work.dependencies_come_first)
def a_task_begins_before_its_dependency_is_over(story: Story) -> None:
    first = story.post(0, "slow")
    second = story.post(1, depends_on=[first])
    story.line(first, "start")
    story.line(second, "start")
    story.line(first, "end")
    story.line(second, "end")
    story.ends(first, "completed")
    story.ends(second, "completed")


@breaks(rules_work.dependencies_come_first)
def a_task_runs_although_its_dependency_failed(story: Story) -> None:
    first = story.post(0, "failing")
    second = story.post(1, depends_on=[first])
    story.work(first, kind="fail")
    story.ends(first, "failed")
    story.work(second)
    story.ends(second, "completed")


@breaks(rules_work.doomed_tasks_never_run)
def a_doomed_task_is_cancelled_without_its_cause(story: Story) -> None:
    first = story.cancelled()
    story.row(story.post(1, depends_on=[first]), status="cancelled")


@breaks(rules_work.completed_work_stays_done)
def completed_work_begins_again(story: Story) -> None:
    task = story.done()
    story.line(task, "start", attempt=2)


@breaks(rules_work.completed_work_stays_done)
def a_task_begins_after_it_was_shown_as_cancelled(story: Story) -> None:
    story.line(story.cancelled(), "start")


@breaks(rules_work.attempts_follow_each_other)
def two_attempts_work_at_once(story: Story) -> None:
    task = story.post(0, "slow")
    story.line(task, "start")
    story.ends(task, "crashed")
    story.line(task, "start", attempt=2)
    story.line(task, "end")
    story.line(task, "end", attempt=2)
    story.ends(task, "completed", attempt=2)


@breaks(rules_work.lost_attempts_end)
def a_lost_attempt_works_on(story: Story) -> None:
    task = story.post(0, "slow")
    story.line(task, "start")
    story.lost(task)
    story.line(task, "end", later=60)


@breaks(rules_work.lost_attempts_end)
def a_frozen_workers_attempt_works_on_long_after_it_came_back(story: Story) -> None:
    task = story.post(0, "slow")
    story.line(task, "start")
    story.fault("freeze_worker", worker="w", moment="begin")
    story.lost(task)
    story.fault("freeze_worker", worker="w", moment="end")
    story.line(task, "end", later=60)


@breaks(rules_work.cancelled_tasks_are_silent)
def a_process_of_a_cancelled_task_is_alive(story: Story) -> None:
    task = story.post(0, "slow")
    story.line(task, "start")
    story.call("cancel", task=task, code=204)
    story.ends(task, "cancelled")
    story.shown(task, "cancelled")
    story.scan(task, 4711)


@breaks(rules_work.nothing_is_left)
def a_grandchild_outlives_its_task(story: Story) -> None:
    story.living = {story.done(0, "family"): [4711]}


@breaks(rules_work.attempts_are_bounded)
def a_task_that_must_not_be_repeated_is(story: Story) -> None:
    task = story.post(0, "once")
    story.work(task)
    story.work(task, attempt=2)


# --- rows and runs ----------------------------------------------------------------------------------------------------


@breaks(rules_rows.everything_ends)
def a_task_is_stuck(story: Story) -> None:
    story.post()


@breaks(rules_rows.everything_ends)
def a_wish_is_left(story: Story) -> None:
    story.row(story.done(), unfinished=("a wish to move",))


@breaks(rules_rows.everything_ends)
def an_attempt_never_ends(story: Story) -> None:
    task = story.done()
    story.row(task, attempts=(replace(story.tasks[task].attempts[0], outcome=None),))


@breaks(rules_rows.statuses_are_explained)
def a_task_is_completed_whose_last_step_never_ended(story: Story) -> None:
    task = story.post(0, "stages")
    story.work(task, step="first")
    story.ends(task, "completed")


@breaks(rules_rows.statuses_are_explained)
def a_task_fails_after_one_lost_attempt(story: Story) -> None:
    task = story.post()
    story.lost(task)
    story.row(task, status="failed")


@breaks(rules_rows.statuses_are_explained)
def a_task_is_cancelled_by_nobody(story: Story) -> None:
    story.row(story.post(), status="cancelled")


@breaks(rules_rows.one_attempt_is_published)
def two_attempts_complete(story: Story) -> None:
    task = story.done()
    story.work(task, attempt=2)
    story.ends(task, "completed", attempt=2)


@breaks(rules_rows.one_attempt_is_published)
def the_result_is_that_of_a_lost_attempt(story: Story) -> None:
    task = story.done()
    story.row(task, result={"output": f"{task}:7\n"})


@breaks(rules_rows.one_attempt_is_published)
def the_file_is_that_of_a_lost_attempt(story: Story) -> None:
    task = story.done(0, "stored")
    story.outputs[0] = f"{task}:7\n"


@breaks(rules_rows.one_attempt_is_published)
def a_cancelled_task_has_a_result(story: Story) -> None:
    story.row(story.cancelled(), result={"output": "x"})


@breaks(rules_rows.one_attempt_is_published)
def completed_work_is_cancelled_by_nobody(story: Story) -> None:
    story.row(story.done(), status="cancelled", result=None)


@breaks(rules_rows.one_attempt_is_published)
def a_promised_cancellation_publishes_the_result(story: Story) -> None:
    task = story.done()
    story.call("cancel", task=task, code=204)
    story.row(task, status="cancelled")


@breaks(rules_rows.work_is_recorded)
def an_attempt_is_not_recorded(story: Story) -> None:
    story.row(story.done(), attempts=())


@breaks(rules_rows.rows_agree_with_prefect)
def a_flow_run_of_a_finished_task_is_alive(story: Story) -> None:
    task = story.done()
    story.runs[task, 2] = Run(task, 2, "RUNNING", "priority-5")


@breaks(rules_rows.rows_agree_with_prefect)
def the_flow_run_ended_otherwise(story: Story) -> None:
    task = story.done()
    story.runs[task, 1] = replace(story.runs[task, 1], type="CANCELLED")


@breaks(rules_rows.rows_agree_with_prefect)
def the_flow_run_ran_in_another_queue(story: Story) -> None:
    story.row(story.done(), priority=9)


@breaks(rules_rows.rows_agree_with_prefect)
def a_completed_task_has_no_flow_run(story: Story) -> None:
    del story.runs[story.done(), 1]


# --- order ------------------------------------------------------------------------------------------------------------


def claims(story: Story, *priorities: int, waited_from: float) -> None:
    """One task for each priority, claimed in this order, a second apart."""
    for number, priority in enumerate(priorities):
        task = story.done(number, priority=priority)
        states = (
            State("SCHEDULED", "Queued", None, waited_from),
            State("PENDING", "Pending", claim_message("w"), 100.0 + number),
        )
        story.runs[task, 1] = Run(task, 1, "COMPLETED", queue_name(priority), states)


@breaks(rules_order.urgent_tasks_come_first)
def an_urgent_task_waits_for_many_others(story: Story) -> None:
    claims(story, 1, 2, 3, 4, 5, 10, waited_from=50.0)


def test_claims_that_were_already_made_come_before_a_more_urgent_task() -> None:
    story = Story()
    claims(story, 1, 2, 3, 4, 10, 5, waited_from=50.0)
    assert check(story.evidence()) == []


def test_what_was_claimed_before_an_urgent_task_came_counts_for_nothing() -> None:
    story = Story()
    claims(story, 1, 2, 3, 4, 5, 10, waited_from=104.0)
    assert check(story.evidence()) == []


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "tell"), BAD, ids=lambda one: getattr(one, "__name__", None))
def test_a_rule_rejects_a_history_that_breaks_it(rule: Rule, tell: Teller) -> None:
    story = Story()
    tell(story)
    assert list(rule(story.evidence()))


def test_every_rule_was_seen_to_reject_something() -> None:
    assert {rule for rule, _ in BAD} == set(RULES)
