"""The checker: all rules, applied to the evidence of one history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from tests.histories import rules_answers, rules_order, rules_rows, rules_work
from tests.histories.evidence import Evidence

Rule = Callable[[Evidence], Iterator[str]]

RULES: Final[tuple[Rule, ...]] = (
    rules_answers.no_server_errors,
    rules_answers.accepted_posts_are_one_task,
    rules_answers.batches_are_all_or_none,
    rules_answers.refused_for_a_reason,
    rules_answers.accepted_tasks_are_found,
    rules_answers.final_answers_stay,
    rules_answers.cancellations_are_obeyed,
    rules_answers.priorities_are_kept,
    rules_work.only_known_tasks_work,
    rules_work.steps_run_in_order,
    rules_work.dependencies_come_first,
    rules_work.doomed_tasks_never_run,
    rules_work.completed_work_stays_done,
    rules_work.attempts_follow_each_other,
    rules_work.lost_attempts_end,
    rules_work.cancelled_tasks_are_silent,
    rules_work.nothing_is_left,
    rules_work.attempts_are_bounded,
    rules_rows.everything_ends,
    rules_rows.statuses_are_explained,
    rules_rows.one_attempt_is_published,
    rules_rows.work_is_recorded,
    rules_rows.rows_agree_with_prefect,
    rules_order.urgent_tasks_come_first,
)


def check(evidence: Evidence) -> list[str]:
    """What is wrong, each with the name of the rule it breaks."""
    return [f"{rule.__name__}: {problem}" for rule in RULES for problem in rule(evidence)]
