"""The worker: a Prefect worker type of our own (`OrchestraWorker`) and the function that runs one (`run_worker`)."""

from ai_task_orchestra.worker.run import run_worker
from ai_task_orchestra.worker.worker import OrchestraWorker

__all__ = ["OrchestraWorker", "run_worker"]
