"""A training as plain values that can be sent to another process, which alone imports torch and SAELens."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actstore_api.logs.lines import FIELDS, LogForm, start_logging
from actstore_api.logs.traces import end_traces, received, start_traces
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import BadRequest
from actstore_worker.training.recipe import CHECKPOINT_STEPS, Training

if TYPE_CHECKING:
    from actstore_worker.training.train import Trained


@dataclass(frozen=True)
class Job:
    """`headers` are those of the command that it belongs to, as `traces.carried` made them."""

    store: str
    s3: S3Access | None
    training: Training
    checkpoint_steps: int = CHECKPOINT_STEPS
    log_form: LogForm = LogForm.JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.checkpoint_steps < 1:
            message = f"checkpoint_steps is {self.checkpoint_steps}"
            raise BadRequest(message, field="checkpoint_steps", value=self.checkpoint_steps, allowed="1 or more")


def run_job(job: Job, say: Callable[[Any], object]) -> "Trained":
    """Runs a training, on a GPU if the process has one: a task of a grid has only its own. `say` is called with its
    progress.
    """
    start_logging("training", job.log_form)
    FIELDS.set({"training": job.training.name, "run": job.training.run})
    with received("training/Train", job.headers):
        return _trained(job, say)


def run_in_process_of_its_own(job: Job, say: Callable[[Any], object]) -> "Trained":
    """As `run_job`, in a process that Ray started for it, and may end once it is done."""
    start_traces("training", os.environ)
    try:
        return run_job(job, say)
    finally:
        end_traces()


def _trained(job: Job, say: Callable[[Any], object]) -> "Trained":
    import torch

    from actstore_worker.training.train import train

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return train(open_bucket(job.store, job.s3), job.training, device, say, checkpoint_steps=job.checkpoint_steps)
