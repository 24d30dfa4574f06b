"""A training as plain values that can be sent to another process, which alone imports torch and SAELens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actstore_api.logs.lines import FIELDS, LogForm, start_logging
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import BadRequest
from actstore_worker.training.recipe import CHECKPOINT_STEPS, Training

if TYPE_CHECKING:
    from actstore_worker.training.train import Trained


@dataclass(frozen=True)
class Job:
    store: str
    s3: S3Access | None
    training: Training
    checkpoint_steps: int = CHECKPOINT_STEPS
    log_form: LogForm = LogForm.JSON

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
    import torch

    from actstore_worker.training.train import train

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return train(open_bucket(job.store, job.s3), job.training, device, say, checkpoint_steps=job.checkpoint_steps)
