"""The lab: what is there, and everything that can be asked of it."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from inspect import signature
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from actstore import _checks as _arguments
from actstore._answer import Table
from actstore._checks import optional_count
from actstore._errors import ActstoreError, Fault
from actstore._models.calls import ModelAsking
from actstore._norms.calls import NormAsking
from actstore._patching.request import sweep_request
from actstore._patching.sweep import Sweep, SweptCells
from actstore._records import (
    CaptureEstimate,
    CaptureSpecification,
    ModelDescription,
    Positions,
    RunDescription,
    SaeDescription,
    Sources,
    SweepEstimate,
    SweepProgress,
    SweepRequest,
)
from actstore._runs.capture import Bar, Capture
from actstore._runs.checkpoints import Captures, check_revisions, run_of_revision
from actstore._runs.run import Run
from actstore._transport.base import Backend
from actstore._verdict import Verdict


class Lab(ModelAsking, NormAsking):
    """A connection; `with actstore.connect() as lab:` closes it, and so does the end of the program."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.closed = False

    @property
    def address(self) -> str:
        return self._backend.address

    def __repr__(self) -> str:
        listings = ".runs(), .models(), .saes(), .datasets()"
        return f"Lab at {self.address}: {listings}, .run(name), .capture(...), .patch(...), .steer(...)"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._backend.close()
        self.closed = True

    def models(self) -> Table:
        """Models that a capture can name, a row a revision, whether a capture has loaded them or not.

        `loaded`: a capture into this store has, and the columns after `family` say what it found. `available`: the
        workers have the files now; None where they were not asked, of a bucket or while they do not answer.
        """
        sources, note = self._sources()
        loaded = {(model.name, model.revision): asdict(model) for model in self._backend.list_models()}
        found = {} if sources is None else sources.models
        rows = [
            {"name": key[0], "revision": key[1], "family": found.get(key)}
            | loaded.get(key, {})
            | {"loaded": key in loaded, "available": None if sources is None else key in found}
            for key in sorted({*loaded, *found})
        ]
        columns = {"name": str, "revision": str, "loaded": bool, "available": bool, "family": str}
        return _listing("models", rows, columns | _column_types(ModelDescription), note)

    def saes(self) -> Table:
        """Sparse autoencoders that a capture can name; `loaded`, `available` and what comes after as of models."""
        sources, note = self._sources()
        loaded = {sae.name: asdict(sae) for sae in self._backend.list_saes()}
        found = () if sources is None else sources.saes
        rows = [
            {"name": name}
            | loaded.get(name, {})
            | {"loaded": name in loaded, "available": None if sources is None else name in found}
            for name in sorted({*loaded, *found})
        ]
        columns = {"name": str, "loaded": bool, "available": bool}
        return _listing("SAEs", rows, columns | _column_types(SaeDescription), note)

    def datasets(self) -> Table:
        """Datasets that a capture can name: files and folders with documents, at the top of the workers' dataset
        folders and stores. `dataset=` also takes a path below one. Through a service, not of a bucket.
        """
        sources = self._backend.list_sources()
        return _listing("datasets", [{"name": name} for name in sources.datasets], {"name": str}, _of_listed(sources))

    def _sources(self) -> tuple[Sources | None, str]:
        """What the workers find, or None where nobody can be asked; and a note for whoever reads the listing."""
        try:
            sources = self._backend.list_sources()
        except ActstoreError as error:
            if error.reason not in ("NEEDS_SERVICE", "WORKERS_UNAVAILABLE"):
                raise
            why = "a bucket knows no more" if error.reason == "NEEDS_SERVICE" else error.message
            return None, f"those that captures have loaded; the workers were not asked for others: {why}"
        return sources, _of_listed(sources)

    def runs(self) -> Table:
        """Runs in the store, complete or not; `lab.run(name)` opens one."""
        return _listing("runs", [_run_row(run) for run in self._backend.list_runs()], RUN_COLUMNS)

    def run(self, name: str) -> Run:
        return Run(self._backend.get_run(_arguments.text(name, "run")), self._backend)

    def check(self, run: str | None = None, *, quick: bool = False, remove_orphans: bool = False) -> Verdict:
        """Reads every object of a run (None: of the whole store) and compares it with its record.

        `quick` leaves out what reads every byte. Orphans of a run that is being captured are left, since those of an
        attempt under way look the same. On a bucket, not through a service.
        """
        name = None if run is None else _arguments.text(run, "run")
        return self._backend.check_runs(name, bool(quick), bool(remove_orphans))

    def remove(self, run: str, *, force: bool = False) -> int:
        """Remove a run from the bucket, for good; how many objects that were. On a bucket, not through a service.

        One that is being captured is refused unless by `force`; its capture then fails.
        """
        return self._backend.remove_run(_arguments.text(run, "run"), bool(force))

    def attach(self, run_name: str) -> Capture:
        """A capture that someone started before."""
        return Capture(_arguments.text(run_name, "run"), self._backend)

    def capture(
        self,
        model: str,
        *,
        dataset: str,
        sites: Iterable[str] = (),
        norms: Iterable[str] | None = None,
        saes: Iterable[str] = (),
        revision: str = "",
        context_length: int | None = None,
        max_tokens: int | None = None,
        dtype: str = "float32",
        name: str | None = None,
        text_field: str = "",
        bos: bool | None = None,
        sequences_per_shard: int | None = None,
        sequences_per_batch: int | None = None,
        storage_dtype: str = "",
        widen_on_overflow: bool = False,
        packing: bool = False,
        positions: Positions | None = None,
        tokens_field: str = "",
        filters: Iterable[tuple[str, str, object]] = (),
        max_documents: int | None = None,
        sink_ratio: float | None = None,
        source_field: str = "",
    ) -> Capture:
        """Run a model over text in the workers and store what it shows; `.wait()` gives the run.

        `sites` are stored as whole vectors, `norms` as L2 norms (None and an empty collection both mean every site),
        `saes` as their nonzero features.
        A site is `resid_post.2`, or `resid_post` for that site of every layer; of q, k, v, z and pattern, `z.2` has all
        heads of a layer and `z.2.5` one. `context_length` (None: the model's) counts tokens of a sequence, `max_tokens`
        of the whole run, both with BOS; `bos` None follows the tokenizer. The same capture again is the same run, and
        finishes it.

        `dataset` is a path below the workers' dataset folders or stores, or `hf:OWNER/NAME:SPLIT`. Of a table,
        `text_field` or (token ids) `tokens_field` is the column to read; `filters` keep rows, as pyarrow's do:
        ("language", "==", "en"); `max_documents` counts those kept. A document's source, shown with its examples, is
        its file and row, or what the column `source_field` says. `estimate` and the capture's progress name files of a
        folder that are not read.

        `storage_dtype` (empty: `dtype`) is what vectors are stored in; a value that it cannot hold refuses the shard,
        or stores that site of it as float32 with `widen_on_overflow`. `positions` chooses the tokens whose vectors are
        stored: Positions.last(), .every(4), .random(0.1, seed=0), .active(sae, feature). `packing` puts several
        sequences into a row of a batch, without attention between them. A token is flagged as a sink where its norm
        exceeds its sequence's median `sink_ratio` times (None: 10; 0: none is).
        """
        return Capture(self._backend.start_capture(self._specification(**_given(locals()))), self._backend)

    def estimate(self, model: str, *, dataset: str, **options: Any) -> CaptureEstimate:
        """What `capture` with the same arguments would take: tokens, bytes by product, seconds. Nothing is stored."""
        return self._backend.estimate_capture(self._specification(model, dataset, **options))

    def capture_revisions(
        self,
        model: str,
        revisions: Iterable[str],
        *,
        dataset: str,
        name: str = "",
        steps: Sequence[float] | None = None,
        **options: Any,
    ) -> Captures:
        """`capture` for each of several revisions of a model, alike in all else; `.wait()` gives `Checkpoints`.

        Each is a run of its own: with a `name`, `<name>-<revision>`. `steps` are the revisions' places in training, one
        each; None: the numbers at the ends of their names. The same request again finishes what is missing. A revision
        that is refused leaves those before it running.
        """
        wanted = _arguments.names(revisions, "revisions")
        places = [_arguments.number(step, "steps") for step in steps or ()]
        check_revisions(wanted, places)
        asked = [
            self._specification(model, dataset, revision=one, name=run_of_revision(name, one), **options)
            for one in wanted
        ]
        captures = [Capture(self._backend.start_capture(one), self._backend) for one in asked]
        return Captures(captures, places, self._backend)

    @staticmethod
    def _specification(
        model: str,
        dataset: str,
        sites: Iterable[str] = (),
        norms: Iterable[str] | None = None,
        saes: Iterable[str] = (),
        revision: str = "",
        context_length: int | None = None,
        max_tokens: int | None = None,
        dtype: str = "float32",
        name: str | None = None,
        text_field: str = "",
        bos: bool | None = None,
        sequences_per_shard: int | None = None,
        sequences_per_batch: int | None = None,
        storage_dtype: str = "",
        widen_on_overflow: bool = False,
        packing: bool = False,
        positions: Positions | None = None,
        tokens_field: str = "",
        filters: Iterable[tuple[str, str, object]] = (),
        max_documents: int | None = None,
        sink_ratio: float | None = None,
        source_field: str = "",
    ) -> CaptureSpecification:
        return CaptureSpecification(
            model=_arguments.text(model, "model"),
            dataset=_arguments.text(dataset, "dataset"),
            run=_arguments.text(name or "", "name"),
            model_revision=_arguments.text(revision, "revision"),
            text_field=_arguments.text(text_field, "text_field"),
            max_tokens=optional_count(max_tokens, "max_tokens"),
            context_length=optional_count(context_length, "context_length"),
            bos=_arguments.tristate(bos, "bos"),
            dense_sites=_arguments.names(sites, "sites"),
            norm_sites=_arguments.names(norms, "norms"),
            saes=_arguments.names(saes, "saes"),
            dtype=_arguments.text(dtype, "dtype"),
            sequences_per_shard=optional_count(sequences_per_shard, "sequences_per_shard"),
            sequences_per_batch=optional_count(sequences_per_batch, "sequences_per_batch"),
            storage_dtype=_arguments.text(storage_dtype, "storage_dtype"),
            widen_on_overflow=_arguments.switch(widen_on_overflow, "widen_on_overflow"),
            packing=_arguments.switch(packing, "packing"),
            positions=_arguments.positions(positions),
            tokens_field=_arguments.text(tokens_field, "tokens_field"),
            row_filters=_arguments.row_filters(filters),
            max_documents=optional_count(max_documents, "max_documents"),
            sink_ratio=None if sink_ratio is None else _arguments.fractions([sink_ratio], "sink_ratio")[0],
            source_field=_arguments.text(source_field, "source_field"),
        )

    def patch(
        self,
        model: str,
        *,
        clean: str | Sequence[int] | Sequence[str | Sequence[int]],
        corrupt: str | Sequence[int] | Sequence[str | Sequence[int]],
        answers: Sequence[str | int] | Sequence[Sequence[str | int]],
        sites: Iterable[str] | None = None,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        positions: str | Iterable[int] = "each",
        directions: Iterable[str] | None = None,
        window_layers: int = 1,
        source: str = "prompt",
        joint: Mapping[str, Iterable[tuple[str, int]]] | None = None,
        screen: int | None = None,
        qk_correction: bool = True,
        grad_drop: bool = False,
        source_run: str = "",
        source_exclude: Iterable[str] | None = None,
        source_seed: int = 0,
        sae: str = "",
        features: Iterable[int] | None = None,
        sae_error: str = "kept",
        spans: Mapping[str, Any] | None = None,
        receivers: Iterable[str] | None = None,
        path_mlps: str = "recomputed",
        revision: str = "",
        bos: bool | None = None,
        fresh: bool = False,
        on_cells: Callable[[SweptCells], object] | None = None,
        progress: bool = True,
    ) -> Sweep:
        """Replace one activation at a time and see how far the answer moves, in both directions unless told otherwise.

        `clean` and `corrupt` have as many tokens, or `spans` names those that play the same part: {"who": ("Mary",
        "Jo"), "end": (range(9, 12), range(8, 11))}, as text or as numbers of tokens. `answers` are the one-token
        answers to each, most with a leading space: (" Mary", " Jo"). Several pairs are lists, as may be answers. Token
        ids stand for any of these: prompts of ids are read as they are, unless `bos` is True.

        `sites` are of resid_pre, attn_out, resid_mid, mlp_out, resid_post, embedding and, by head, q, k, v, pattern and
        z (None: resid_pre, attn_out, mlp_out, z; or none, with `joint` or `sae`); `layers` and `heads` numbers (None:
        all). `positions`: "each", "all" (of a site at once), "last", or numbers. `window_layers` replaces so many
        layers at once, `joint` sets of cells: {"movers": [("z.3.0", 12), ("z.3.6", 12)]}.

        `source`: the other "prompt", "zero", or of `source_run` the "mean" of its rows, or rows drawn by "resample".
        `sae` patches `features` of that SAE (None: all that are active) one by one, all together, and what the SAE
        leaves unexplained, which meanwhile is `sae_error`: "kept", "dropped" or "patched".

        `receivers` make it path patching: sites send, and q.9.6, k.9, v.9, mlp_in.3 or "logits" alone take what comes
        past held heads, and past MLPs that are "recomputed" or, with `path_mlps`, "frozen".

        `screen` estimates every cell by a gradient, and computes only so many of each direction. `qk_correction`
        computes softmax for q and k; `grad_drop` finds effects that cancel, and loses signs. docs/patching.md says all.

        `on_cells` is called with rows as they are finished. The answer to a request is kept and given again to the
        same one, unless `fresh`; Ctrl-C ends the sweep. `estimate_patch` says beforehand what it would take.
        """
        bar = Bar(sys.stderr, f"patch {model}", enabled=progress)
        return self._swept(sweep_request(_given(locals())), bar, on_cells or (lambda _: None))

    def estimate_patch(self, model: str, **options: Any) -> SweepEstimate:
        """What `patch` with the same arguments would take: cells, token-layers, bytes, seconds. No cell is run."""
        asked = signature(self.patch).bind(model, **options)
        asked.apply_defaults()
        return self._backend.estimate_sweep(sweep_request(asked.arguments))

    def _swept(self, request: SweepRequest, bar: Bar, on_cells: Callable[[SweptCells], object]) -> Sweep:
        try:
            for update in self._backend.run_sweep(request):
                if isinstance(update, SweepProgress):
                    bar.draw(update.cells_done, update.cells_total, "sweep", "cells")
                elif isinstance(update, SweptCells):
                    on_cells(update)
                else:
                    return update
        finally:
            bar.close()
        raise Fault("the service ended the sweep without a result")


_ARROW_TYPES = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}
RUN_COLUMNS = {
    "name": str,
    "model": str,
    "dataset": str,
    "complete": bool,
    "tokens_committed": int,
    "tokens_total": int,
    "dense_sites": str,
    "saes": str,
}


def _run_row(run: RunDescription) -> dict[str, object]:
    return {
        "name": run.name,
        "model": run.specification.model,
        "dataset": run.specification.dataset,
        "complete": run.complete,
        "tokens_committed": run.tokens_committed,
        "tokens_total": run.tokens_total,
        "dense_sites": ", ".join(run.dense_sites),
        "saes": ", ".join(sae.name for sae in run.saes),
    }


@dataclass(frozen=True, repr=False)
class Listing(Table):
    """What is there of one kind; `note` says what may be there beside."""

    kind: str
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | ({"note": self.note} if self.note else {})

    def _title(self) -> str:
        return f"{len(self):,} {self.kind}"

    def _notes(self) -> list[str]:
        return [*super()._notes(), *([self.note] if self.note else [])]


def _column_types(kind: type[Any]) -> dict[str, type]:
    return {field.name: field.type for field in fields(kind) if isinstance(field.type, type)}


def _listing(kind: str, rows: list[dict[str, Any]], columns: Mapping[str, type], note: str = "") -> Table:
    """What a row does not have is None."""
    found = {name: pa.array([row.get(name) for row in rows], _ARROW_TYPES.get(of)) for name, of in columns.items()}
    return Listing(kind=kind, note=note, table=pa.table(found))


def _of_listed(sources: Sources) -> str:
    more = ["there are more, of which the first are listed"] if sources.truncated else []
    more += ["names of the Hugging Face hub are allowed, and not listed"] if sources.hub_allowed else []
    return "; ".join(more)


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != "self"}
