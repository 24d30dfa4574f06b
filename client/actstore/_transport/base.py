"""Whom the client asks: a service over gRPC, or a bucket by itself. The same calls, the same answers, the same errors.

`exclude` is a set of token classes (bos, special, sink), empty for none; elsewhere None means the answerer's default.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from actstore._errors import ActstoreError, refused
from actstore._features.stored import FeatureStatistics
from actstore._model_questions import ModelQuestion
from actstore._norms.profile import Growth, GrowthQuestion, NormProfile, ProfileQuestion
from actstore._norms.separability import Separability, SeparabilityQuestion
from actstore._patching.sweep import Sweep, SweptCells
from actstore._questions import FeatureQuestion, Found, RowsQuestion, SaeQuestion
from actstore._records import (
    CaptureEstimate,
    CaptureProgress,
    CaptureSpecification,
    ModelDescription,
    Provenance,
    RowQuery,
    RunDescription,
    SaeDescription,
    Sources,
    SweepEstimate,
    SweepProgress,
    SweepRequest,
)
from actstore._verdict import Verdict

Rows = tuple[pa.Table, Provenance]
Question = FeatureQuestion | SaeQuestion | ModelQuestion


class Backend(ABC):
    """Every method raises errors of actstore._errors only."""

    address: str

    @abstractmethod
    def list_runs(self) -> list[RunDescription]: ...

    @abstractmethod
    def get_run(self, run: str) -> RunDescription: ...

    @abstractmethod
    def list_models(self) -> list[ModelDescription]: ...

    @abstractmethod
    def list_sources(self) -> Sources:
        """What the workers find. NEEDS_SERVICE of a bucket, Unavailable where the workers are."""

    @abstractmethod
    def list_saes(self) -> list[SaeDescription]: ...

    @abstractmethod
    def norm_profile(self, question: ProfileQuestion) -> NormProfile: ...

    @abstractmethod
    def fit_growth(self, question: GrowthQuestion) -> Growth: ...

    @abstractmethod
    def separability(self, question: SeparabilityQuestion) -> Separability: ...

    @abstractmethod
    def feature_statistics(
        self, run: str, sae: str, feature: int, exclude: frozenset[str], bins: int
    ) -> FeatureStatistics: ...

    @abstractmethod
    def ask(self, question: Question) -> Found:
        """Every kind of question but RowsQuestion."""

    @abstractmethod
    def read_feature(self, question: RowsQuestion) -> Rows: ...

    @abstractmethod
    def read_activations(self, run: str, query: RowQuery) -> Rows:
        """One site's column is `activation`; several have their names."""

    @abstractmethod
    def read_tokens(self, run: str, query: RowQuery) -> Rows: ...

    @abstractmethod
    def estimate_capture(self, specification: CaptureSpecification) -> CaptureEstimate: ...

    @abstractmethod
    def start_capture(self, specification: CaptureSpecification) -> str:
        """The run's name."""

    @abstractmethod
    def watch_capture(self, run: str) -> Iterator[CaptureProgress]:
        """Ends after the first progress in an end state; raises the capture's own error where it failed."""

    @abstractmethod
    def cancel_capture(self, run: str) -> CaptureProgress: ...

    @abstractmethod
    def run_sweep(self, request: SweepRequest) -> Iterator[SweepProgress | SweptCells | Sweep]:
        """Progress and cells as they are finished, then one sweep with all of them."""

    @abstractmethod
    def estimate_sweep(self, request: SweepRequest) -> SweepEstimate: ...

    def check_runs(self, run: str | None, quick: bool, remove_orphans: bool) -> Verdict:  # noqa: ARG002
        raise needs_bucket("checking a store", self.address)

    def remove_run(self, run: str, force: bool) -> int:  # noqa: ARG002
        raise needs_bucket("removing a run", self.address)

    def export(self, run: str, site: str, layout: str, folder: Path) -> int:  # noqa: ARG002
        raise needs_bucket("exporting a run", self.address)

    @abstractmethod
    def close(self) -> None: ...


def needs_bucket(call: str, address: str) -> ActstoreError:
    """What reads or removes a store's own objects is for those who have the store's keys."""
    allowed = "./folder, or s3://bucket/prefix with its keys"
    return refused(f"{call} is done on the bucket itself, and {address} is a service", "address", address, allowed)
