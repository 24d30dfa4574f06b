"""Runs one training from its first step, or from its last checkpoint, until the SAE is in the bucket.

The loop uses the extension points of SAELens's `SAETrainer.fit`, so that progress and checkpoints are ours. A training
that is killed and started again ends, on a CPU, with the same bits.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest, Conflict
from actstore_storage.format.keys import training_key
from actstore_storage.registry.saes import find_registered_sae
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.training.checkpoints import latest_checkpoint, load_checkpoint, remove_checkpoints, save_checkpoint
from actstore_worker.training.feed import RowFeed
from actstore_worker.training.quality import Quality
from actstore_worker.training.recipe import CHECKPOINT_STEPS, Training, check_rows
from actstore_worker.training.saving import find_saved, save

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput
    from sae_lens.training.sae_trainer import SAETrainer

PROGRESS_SECONDS = 3.0
# Checkpoints before the first regular one, so that a crash costs at most about as much as was done before.
EARLY_CHECKPOINTS = (50, 100, 200, 400, 800)


@dataclass(frozen=True)
class Progress:
    """The state after a step. `loss` is the training loss of its batch, in the scale of training. `dead`: dead features
    so far; None while there were too few steps to count any.
    """

    name: str
    step: int
    steps: int
    rows: int
    rows_per_second: float
    loss: float
    l0: float
    fvu: float
    dead: int | None


Report = Callable[[Progress], object]


@dataclass(frozen=True)
class Trained:
    """The result. `seconds` of this process; 0 for an SAE that existed already."""

    name: str
    sha256: str
    rows: int
    seconds: float
    quality: Quality | None


def train(
    bucket: Bucket,
    training: Training,
    device: torch.device,
    report: Report,
    *,
    checkpoint_steps: int = CHECKPOINT_STEPS,
    progress_seconds: float = PROGRESS_SECONDS,
) -> Trained:
    """Trains an SAE. It returns at once if this training has already finished. On Ctrl-C or SIGTERM it finishes its
    step, saves a checkpoint and raises KeyboardInterrupt; a second signal raises that at once.

    Errors: BadRequest for a run, site or rows that cannot be used; Conflict if another training, or an SAE of another
    origin, has the name, or the run is not the one that the training began with.
    """
    snapshot = open_run(bucket, training.run)
    check_rows(snapshot, training.site)
    claimed = _claim_name(bucket, training, snapshot)
    began = time.monotonic()
    found = find_saved(bucket, training.name)
    if found is None:
        with _nothing_stays(bucket, training.name, claimed), _own_random_numbers():
            sae = _trained(bucket, training, snapshot, device, report, checkpoint_steps, progress_seconds)
            found = save(bucket, training, snapshot, sae, device)
    remove_checkpoints(bucket, training.name)
    sha256, quality = found
    return Trained(training.name, sha256, training.steps * training.batch_rows, time.monotonic() - began, quality)


def _claim_name(bucket: Bucket, training: Training, snapshot: Snapshot) -> bool:
    """Takes the name, and returns whether it was free."""
    if snapshot.record.specification_sha256 != training.specification_sha256:
        raise Conflict(
            f"run {training.run} was replaced by another one since this training was started",
            field="run",
            value=training.run,
            allowed=f"the run with specification {training.specification_sha256}",
        )
    key = training_key(training.name)
    if not bucket.exists(key) and find_registered_sae(bucket, training.name) is not None:
        raise _taken(training.name, "the name is taken by an SAE that was not trained in this store")
    if bucket.put_if_absent(key, training.to_json()):
        return True
    standing = Training.from_json(bucket.get(key), key)
    if differences := training.differences(standing):
        raise _taken(training.name, f"another training has that name: {'; '.join(differences)}")
    return False


@contextmanager
def _nothing_stays(bucket: Bucket, name: str, claimed: bool) -> Iterator[None]:
    """Removes a training that is refused because of its rows, so that its name is free again."""
    try:
        yield
    except BadRequest:
        if claimed:
            remove_checkpoints(bucket, name)
            bucket.delete(training_key(name))
        raise


def _taken(name: str, why: str) -> Conflict:
    message = f"SAE {name!r} cannot be trained: {why}"
    return Conflict(message, reason="SAE_EXISTS", field="name", value=name, allowed="another name")


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


def _trained(
    bucket: Bucket,
    training: Training,
    snapshot: Snapshot,
    device: torch.device,
    report: Report,
    checkpoint_steps: int,
    progress_seconds: float,
) -> Any:
    from actstore_worker.training.building import build_trainer

    trainer = build_trainer(training, snapshot, iter(()), device)
    key = latest_checkpoint(bucket, training.name)
    state = None if key is None else load_checkpoint(bucket, key, trainer)
    if state is None and training.normalise:
        with RowFeed(snapshot, training, device) as sample:
            trainer.activation_scaler.scaling_factor = _scale(sample, training)
    pace = _Pace(training, report, progress_seconds, trainer.n_training_steps)
    with RowFeed(snapshot, training, device, state) as rows, _told_to_end() as told:
        while trainer.n_training_steps < training.steps:
            trainer.maybe_reset_sparsity()
            output = trainer.step(next(rows))
            trainer.n_training_steps += 1
            if told.is_set() or _is_checkpoint(trainer.n_training_steps, training, checkpoint_steps):
                save_checkpoint(bucket, training.name, trainer, rows.state())
            if told.is_set():
                raise KeyboardInterrupt
            pace.tell(trainer, output)
    if trainer.activation_scaler.scaling_factor is not None:
        trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.set_final_sae_metadata()
    return trainer.sae


def _is_checkpoint(step: int, training: Training, every: int) -> bool:
    """The last step is a checkpoint, because measuring and storing the SAE takes time, too."""
    return step % every == 0 or (step < every and step in EARLY_CHECKPOINTS) or step == training.steps


@contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C or SIGTERM; the second raises KeyboardInterrupt. Never set outside the main thread."""
    told = threading.Event()

    def tell(_number: int, _frame: FrameType | None) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _scale(rows: RowFeed, training: Training) -> float:
    """sqrt(d) divided by the mean norm of the first rows, as SAELens estimates it."""
    from actstore_worker.training.building import SCALE_BATCHES

    total, count, width = 0.0, 0, 0
    for _ in range(min(SCALE_BATCHES, training.steps)):
        batch = next(rows)
        total += float(torch.linalg.vector_norm(batch, dim=-1).sum())
        count, width = count + len(batch), batch.shape[1]
    return float(width**0.5 / (total / count))


class _Pace:
    """Reports the progress of a training every few seconds and at its end."""

    def __init__(self, training: Training, report: Report, seconds: float, first_step: int) -> None:
        self._training, self._report, self._seconds = training, report, seconds
        self._told, self._told_step = time.monotonic(), first_step

    def tell(self, trainer: "SAETrainer[Any, Any]", output: "TrainStepOutput") -> None:
        now, step = time.monotonic(), trainer.n_training_steps
        if now - self._told < self._seconds and step < self._training.steps:
            return
        rows = (step - self._told_step) * self._training.batch_rows
        self._report(_progress(self._training, trainer, output, rows / max(now - self._told, 1e-9)))
        self._told, self._told_step = now, step


@torch.no_grad()
def _progress(
    training: Training, trainer: "SAETrainer[Any, Any]", output: "TrainStepOutput", rows_per_second: float
) -> Progress:
    x = output.sae_in
    error, spread = (x - output.sae_out).square().sum(), (x - x.mean(dim=0)).square().sum()
    return Progress(
        name=training.name,
        step=trainer.n_training_steps,
        steps=training.steps,
        rows=trainer.n_training_samples,
        rows_per_second=rows_per_second,
        loss=float(output.loss),
        l0=float((output.feature_acts != 0).sum()) / len(x),
        fvu=float(error / spread),
        # SAELens counts features that have not fired for more steps than this.
        dead=int(trainer.dead_neurons.sum()) if trainer.n_training_steps > training.dead_after_steps else None,
    )
