import pytest

from ai_task_orchestra import protocol
from ai_task_orchestra.worker.execution import catalog_flow


@pytest.mark.parametrize(
    ("entrypoint", "name"),
    [
        ("flows.catalog.noop", "noop"),
        ("flows.catalog:noop", "noop"),
        ("flows.catalogue.noop", None),
        ("flows.catalog", None),
        ("/some/where/flows/catalog.py:noop", None),
        ("", None),
    ],
)
def test_only_flows_of_the_catalog_are_taken_from_it(entrypoint: str, name: str | None) -> None:
    assert catalog_flow(entrypoint, "flows.catalog") == name


def test_who_runs_a_flow_run_can_be_read_from_it() -> None:
    assert protocol.worker_of_run(protocol.infrastructure_pid("gpu:1", 42)) == "gpu:1"
    assert protocol.worker_of_run(None) is None
    assert protocol.worker_of_run("nonsense") is None
