"""A child's log lines and events reach the worker, with what they belong to, and without a thread."""

from __future__ import annotations

import socket
import threading
from uuid import uuid4

from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event
from prefect.logging.handlers import emit_api_log

from ai_task_orchestra.worker.child_link import ChildLink, Message
from ai_task_orchestra.worker.relay import Relay


async def relayed(run: FlowRun) -> Message:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with Relay(ChildLink(theirs)).collecting(run, {"flow": "a-flow", "deployment": "a-deployment"}):
            emit_api_log({"message": "hello", "__payload_size__": 1})
            emit_event("prefect.task-run.Running", resource={"prefect.resource.id": "prefect.task-run.1"})
        message = await ChildLink(ours).receive()
    assert message is not None
    return message


async def test_lines_and_events_arrive_before_the_collecting_ends_and_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    message = await relayed(FlowRun(flow_id=uuid4(), name="a-run"))
    assert [line["message"] for line in message["lines"]] == ["hello"]
    assert [event["event"] for event in message["events"]] == ["prefect.task-run.Running"]
    assert set(threading.enumerate()) == before


async def test_an_event_says_which_run_flow_deployment_queue_pool_and_tags_it_belongs_to() -> None:
    run = FlowRun(
        flow_id=uuid4(),
        name="a-run",
        deployment_id=uuid4(),
        work_queue_id=uuid4(),
        work_queue_name="priority-5",
        work_pool_id=uuid4(),
        work_pool_name="a-pool",
        tags=["blue"],
    )
    [event] = (await relayed(run))["events"]
    named = {
        each["prefect.resource.role"]: (
            each["prefect.resource.id"].rpartition(".")[2],
            each.get("prefect.resource.name"),
        )
        for each in event["related"]
    }
    assert named == {
        "flow-run": (str(run.id), "a-run"),
        "flow": (str(run.flow_id), "a-flow"),
        "deployment": (str(run.deployment_id), "a-deployment"),
        "work-queue": (str(run.work_queue_id), "priority-5"),
        "work-pool": (str(run.work_pool_id), "a-pool"),
        "tag": ("blue", None),
    }
