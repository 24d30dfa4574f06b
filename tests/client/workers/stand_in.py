"""Workers that answer by the contract without a model: what the client shows of captures and sweeps can be told apart.

`StandInWorkers` is a real gRPC server in this process, behind a real service. Run names steer captures: `fails`,
`cancelled`, `slow` (until cancelled), `breaks` (the stream breaks off once), `unfinished` (ends without an end state).
What it says of SAEs is in stand_in_saes, and of models alone in stand_in_models.
"""

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pyarrow as pa
from grpc_status import rpc_status

from actstore_api.codec import decode, encode, message_of
from actstore_api.reasons import to_status
from actstore_api.records import capture, information, patching
from actstore_api.records.terms import Failure
from actstore_api.verbs import VERBS, Verb
from tests.client.workers.models import StandInModels
from tests.client.workers.saes import StandInSaes, told
from tests.client.workers.weights import StandInWeights
from tests.stored_run import MODEL

TOKEN = "gateway-token"
CLEAN, CORRUPT = ["<bos>", " When", " Mary", " gave", " to"], ["<bos>", " When", " John", " gave", " to"]
LAYERS, HEADS = 3, 2
SITES = ("resid_pre", "attn_out", "mlp_out", "z")
CLEAN_DIFFERENCE, CORRUPT_DIFFERENCE = 3.0, -1.0
SHARDS, TOKENS_PER_SHARD = 4, 250
SOURCES = capture.ListSourcesAnswer(
    models=(capture.FoundModel("another", "step9", "llama"), capture.FoundModel(MODEL, "", "gpt2")),
    saes=("another-sae",),
    datasets=("asyncio", "text.jsonl"),
    hub_allowed=True,
    truncated=False,
)
UNEQUAL = Failure("PROMPT_LENGTHS_DIFFER", "4 and 5 tokens", {"field": "corrupt", "value": "5", "allowed": "4"})
MISMATCH = Failure("SAE_MISMATCH", "the SAE reads 768 values", {"field": "saes", "value": "768", "allowed": "8"})


def normalized(direction: str, site: str, layer: int, position: int, head: int | None) -> float:
    """A number of its own for every cell; negative for attn_out, strongest for z."""
    strength = {"resid_pre": 0.05, "attn_out": -0.03, "mlp_out": 0.01, "z": 0.07}[site]
    return strength * (1 + layer) * (1 + position) * (1 if direction == "denoise" else 0.5) * (1 + 2 * (head or 0))


def cells(sites: tuple[str, ...] = SITES, layers: tuple[int, ...] = tuple(range(LAYERS))) -> pa.Table:
    rows = []
    for direction, base, source in (
        ("denoise", CORRUPT_DIFFERENCE, CLEAN_DIFFERENCE),
        ("noise", CLEAN_DIFFERENCE, CORRUPT_DIFFERENCE),
    ):
        texts = CORRUPT if direction == "denoise" else CLEAN
        for site in sites:
            for layer in layers:
                for position, text in enumerate(texts):
                    for head in range(HEADS) if site == "z" else (None,):
                        value = normalized(direction, site, layer, position, head)
                        rows.append(
                            (direction, site, layer, position, head, text, base + value * (source - base), value)
                        )
    names = ("direction", "site", "layer", "position", "head", "token", "logit_difference", "normalized")
    kinds = (pa.string(), pa.string(), pa.int32(), pa.int32(), pa.int32(), pa.string(), pa.float64(), pa.float64())
    columns = zip(*rows, strict=True)
    return pa.table({name: pa.array(column, kind) for name, column, kind in zip(names, columns, kinds, strict=True)})


def tokens() -> pa.Table:
    return pa.table({"position": range(len(CLEAN)), "clean": CLEAN, "corrupt": CORRUPT})


def _refuse(context: grpc.ServicerContext, failure: Failure) -> None:
    context.abort_with_status(rpc_status.to_status(to_status(failure)))


# Of this run's dataset, and of what is estimated, some files are not read.
MIXED = "partial"
# It waits before its first shard.
WAITS = MIXED
FILES = capture.DatasetFiles(read=20, not_read=3, first_not_read=("notes", ".DS_Store"))


class _Verbs(grpc.GenericRpcHandler):
    """Each verb that the stand-in has a method for: records go in and out, whichever service it is of."""

    def __init__(self, workers: "StandInWorkers") -> None:
        self._workers = workers

    def service(self, call):
        verb = next((verb for verb in VERBS.values() if verb.path == call.method), None)
        if verb is None or not hasattr(self._workers, verb.name):
            return None
        kind = grpc.unary_stream_rpc_method_handler if verb.streams else grpc.unary_unary_rpc_method_handler
        act = self._several if verb.streams else self._one
        return kind(
            lambda message, context: act(verb, message, context),
            message_of(verb.question).FromString,
            lambda message: message.SerializeToString(),
        )

    def _one(self, verb: Verb, message, context):
        asked = self._workers.meet(decode(verb.question, message), context)
        return encode(getattr(self._workers, verb.name)(asked, context))

    def _several(self, verb: Verb, message, context):
        asked = self._workers.meet(decode(verb.question, message), context)
        yield from map(encode, getattr(self._workers, verb.name)(asked, context))


class StandInWorkers(StandInSaes, StandInModels, StandInWeights):
    def __init__(self, token: str = TOKEN) -> None:
        self.requests: list[object] = []
        self.cancelled = threading.Event()
        self._token = token
        self._watches = 0
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((_Verbs(self),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self.cancelled.set()
        self._server.stop(None).wait()

    def meet(self, asked, context):
        self.requests.append(asked)
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {self._token}":
            _refuse(context, Failure("UNAUTHENTICATED", "not the token"))
        return asked

    def StartCapture(self, asked, context):
        if "bad-sae" in asked.specification.saes:
            _refuse(context, MISMATCH)
        return capture.StartCaptureAnswer(asked.specification.run or "planted")

    def EstimateCapture(self, asked, context):
        sizes = {"tokens": 500, "resid_post.0": 4000}
        estimate = capture.CaptureEstimate(
            documents=3, sequences=4, tokens=100, shards=2, bytes_by_product=sizes, bytes=4500, seconds=12.0,
            documents_with_bos=2, dataset_files=FILES,
        )  # fmt: skip
        return capture.EstimateCaptureAnswer(estimate)

    def GetWorkersInfo(self, asked, context):
        return information.GetWorkersInfoAnswer(information.WorkersInfo("9.9.9", 2, (1, 2, 3, 4), 4))

    def GetCaptureTotals(self, asked, context):
        return capture.GetCaptureTotalsAnswer()

    def ListSources(self, asked, context):
        return SOURCES

    def WatchCapture(self, asked, context) -> Iterator[capture.WatchCaptureAnswer]:
        self._watches += 1
        for shards in range(SHARDS):
            yield _news(asked.run, "running", shards)
        if asked.run == "breaks" and self._watches == 1:
            _refuse(context, Failure("WORKERS_UNAVAILABLE", "restarting"))
        if asked.run == "slow":
            while not self.cancelled.wait(0.05) and context.is_active():
                yield _news(asked.run, "running", SHARDS - 1)
        ends = {"fails": "failed", "cancelled": "cancelled", "slow": "cancelled"}
        if asked.run != "unfinished":
            yield _news(asked.run, ends.get(asked.run, "complete"), SHARDS)

    def CancelCapture(self, asked, context):
        if asked.run == "nobody":
            _refuse(context, Failure("CAPTURE_NOT_FOUND", "no such capture", {"field": "run", "value": asked.run}))
        self.cancelled.set()
        return capture.CancelCaptureAnswer(_news(asked.run, "cancelled", SHARDS - 1).progress)

    def RunSweep(self, asked, context) -> Iterator[patching.RunSweepAnswer]:
        _check_lengths(asked, context)
        for part in _halves(_asked_cells(asked)):
            yield patching.RunSweepAnswer(patching.SweepCells(part))
            yield patching.RunSweepAnswer(patching.SweepProgress(1, 2))
        if asked.model.name != "no-result":
            yield patching.RunSweepAnswer(result(model=asked.model.name))

    def EstimateSweep(self, asked, context):
        _check_lengths(asked.sweep, context)
        count = _asked_cells(asked.sweep).num_rows
        return patching.EstimateSweepAnswer(
            patching.SweepEstimate(count, token_layers=10.5, token_layers_full=40, bytes=count * 100, seconds=1.5)
        )


def _check_lengths(asked: patching.RunSweep, context: grpc.ServicerContext) -> None:
    (pair, *_) = asked.pairs
    if isinstance(pair.clean, str) and len(pair.clean.split()) != len(pair.corrupt.split()):
        _refuse(context, UNEQUAL)


def result(**known) -> patching.SweepResult:
    """What ends a sweep; `known` is of its provenance."""
    return patching.SweepResult(
        tokens=tokens(),
        clean_answer=CLEAN[2],
        corrupt_answer=CORRUPT[2],
        clean_logit_difference=CLEAN_DIFFERENCE,
        corrupt_logit_difference=CORRUPT_DIFFERENCE,
        baselines=pa.table({}),
        direct=pa.table({}),
        stored_rows=None,
        audit=UNAUDITED,
        provenance=told(**known),
    )


UNAUDITED = patching.SweepAudit(
    audited_cells=0, largest_error=0.0, noise_floor=0.0, tolerance=0.0, kernel="resumed", token_layers=0.0,
    token_layers_full=0.0,
)  # fmt: skip


def _news(run: str, state: capture.CaptureState, shards: int) -> capture.WatchCaptureAnswer:
    progress = capture.CaptureProgress(
        run=run,
        state=state,
        shards_committed=shards,
        shards_total=SHARDS,
        tokens_committed=shards * TOKENS_PER_SHARD,
        tokens_total=SHARDS * TOKENS_PER_SHARD,
        elapsed_seconds=float(shards),
        failure=MISMATCH if state == "failed" else None,
    )
    if run == WAITS and not shards:
        progress = replace(progress, queue=capture.QueuePlace(2, 1, 30.0))
    return capture.WatchCaptureAnswer(replace(progress, dataset_files=FILES) if run == MIXED else progress)


def main() -> None:
    """`python -m actstore_worker` of a stand-in stack: the same environment, the same ready line, the same end."""
    started = StandInWorkers(token=os.environ["ACTSTORE_GATEWAY_TOKEN"])
    print(json.dumps({"ready": "workers", "address": started.address}), flush=True)
    signal.sigwait({signal.SIGTERM})
    started.close()


def _asked_cells(asked: patching.RunSweep) -> pa.Table:
    return cells(asked.sites or SITES, asked.layers or tuple(range(LAYERS)))


def _halves(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    half = table.num_rows // 2
    return table.slice(0, half), table.slice(half)
