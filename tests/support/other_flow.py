"""Somebody else's flow, deployed to our pool: it is in no catalog."""

from __future__ import annotations

from prefect import flow, get_run_logger


@flow
def greet(name: str) -> str:
    get_run_logger().info("hello %s", name)
    return f"hello {name}"
