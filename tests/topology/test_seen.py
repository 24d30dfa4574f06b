"""What logs and traces of real processes say of a request, and what neither these nor Ray's own files ever say."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import actstore
from actstore_api.logs import traces
from actstore_api.v1 import capture_pb2, common_pb2, model_pb2, patching_pb2
from tests.service.observed.otlp import Receiver, Span
from tests.service.process import running_service
from tests.topology.caller import CALL_SECONDS, TINY, Caller, pair_of, prompt, specification
from tests.waiting import wait_until
from tests.worker_process import WorkerProcess, command_line, descendants

pytestmark = pytest.mark.stack

PLANTED = "planted prompt of a researcher"
WRONG_TOKEN = "planted-wrong-token"
PROMPT = "Mary gave a planted prompt"
PATH = "/actstore_api.v1.ModelService/GetAttention"


class Logs:
    """Standard error of the workers, and every file of Ray's session."""

    def __init__(self, workers: WorkerProcess, folder: Path) -> None:
        self.main = folder / "workers.log"
        raylet = next(words for words in map(command_line, descendants(workers.pid)) if "/raylet " in words)
        self.session = Path(raylet.partition("--session_dir=")[2].split()[0])

    def lines(self, **fields: str) -> list[dict[str, Any]]:
        """The JSON lines of standard error that have these fields."""
        said = [json.loads(line) for line in self.main.read_text().splitlines() if line.startswith("{")]
        return [line for line in said if all(line.get(name) == value for name, value in fields.items())]

    def line(self, **fields: str) -> dict[str, Any]:
        wait_until(lambda: self.lines(**fields), f"a line with {fields}")
        return self.lines(**fields)[-1]

    def texts(self) -> Iterator[tuple[Path, str]]:
        for path in [self.main, *(self.session / "logs").rglob("*")]:
            with suppress(OSError):  # of a process that has ended
                if path.is_file():
                    yield path, path.read_text(errors="replace")


@pytest.fixture
def logs(workers: WorkerProcess, folder: Path) -> Logs:
    return Logs(workers, folder)


def _with(caller: Caller, request_id: str) -> dict[str, Any]:
    metadata = (*caller.with_token["metadata"], ("x-request-id", request_id))
    return {"metadata": metadata, "timeout": CALL_SECONDS}


def _refused(call: Any) -> None:
    with pytest.raises(grpc.RpcError):
        call()


def test_lines_of_a_question_have_its_id_wherever_it_went(caller: Caller, logs: Logs) -> None:
    attention = model_pb2.GetAttentionRequest(model=TINY, text=prompt("Mary gave"), layers=[99])
    _refused(lambda: caller.models.GetAttention(attention, **_with(caller, "to-a-replica")))
    line = logs.line(request_id="to-a-replica", logger="actstore_worker.cluster.placement.answers")
    assert (line["process"], line["level"]) == ("replica", "INFO")
    assert line["message"] == "replica/GetAttention: LAYER_OUT_OF_RANGE in layers (BadRequest)"
    estimate = capture_pb2.EstimateCaptureRequest(specification=specification("e", dataset="absent"))
    _refused(lambda: caller.captures.EstimateCapture(estimate, **_with(caller, "to-the-coordinator")))
    assert logs.line(request_id="to-the-coordinator")["process"] == "coordinator"
    sweep = patching_pb2.RunSweepRequest(model=TINY, pairs=[pair_of("Mary gave", "John went to the store")])
    _refused(lambda: list(caller.sweeps.RunSweep(sweep, **_with(caller, "of-a-sweep"))))
    assert logs.line(request_id="of-a-sweep")["process"] == "replica"


def test_lines_of_a_capture_have_the_id_of_who_asked_and_its_attempts(caller: Caller, logs: Logs) -> None:
    asked = capture_pb2.StartCaptureRequest(specification=specification("logged", norm_sites=["resid_post.1"]))
    run = caller.captures.StartCapture(asked, **_with(caller, "of-a-capture")).run
    assert list(caller.watch(run))[-1].state == capture_pb2.CAPTURE_STATE_COMPLETE
    ended = logs.line(process="coordinator", run=run, request_id="of-a-capture")
    assert "complete" in ended["message"]
    loaded = logs.line(process="capture", run=run, request_id="of-a-capture")
    assert {"shard", "attempt"} <= set(loaded)


def test_shards_of_a_capture_are_in_the_trace_of_who_asked(caller: Caller, receiver: Receiver) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    asked = capture_pb2.StartCaptureRequest(specification=specification("traced", norm_sites=["resid_post.1"]))
    how = _with(caller, "traced")
    how["metadata"] = (*how["metadata"], ("traceparent", f"00-{trace}-{parent}-01"))
    run = caller.captures.StartCapture(asked, **how).run
    done = list(caller.watch(run))[-1]
    coordinator = receiver.span(trace=trace, process="coordinator", name="coordinator/StartCapture")

    def shards() -> list[Span]:
        return [span for span in receiver.spans if span.trace == trace and span.process == "capture"]

    wait_until(lambda: len(shards()) >= done.shards_total, "a span of each shard")
    assert {span.parent for span in shards()} == {coordinator.own}
    assert receiver.span(trace=trace, process="gateway").parent == parent


def test_no_secret_and_no_prompt_is_in_any_log(
    caller: Caller, logs: Logs, workers: WorkerProcess, folder: Path
) -> None:
    """Whatever field it stands in, and whichever process refuses it."""
    (folder / "data" / "broken.jsonl").write_text(f'{{"text": "{PLANTED}"}}\n{{"text": "{PLANTED}"\n')
    named = common_pb2.ModelReference(name=PLANTED)
    questions: list[Any] = [
        lambda **how: caller.captures.CancelCapture(capture_pb2.CancelCaptureRequest(run=PLANTED), **how),
        lambda **how: list(caller.captures.WatchCapture(capture_pb2.WatchCaptureRequest(run=PLANTED), **how)),
        lambda **how: caller.models.GetAttention(model_pb2.GetAttentionRequest(model=named, text=prompt("a")), **how),
        lambda **how: caller.models.GetAttention(
            model_pb2.GetAttentionRequest(model=TINY, text=prompt(PLANTED), layers=[99]), **how
        ),
        *(
            lambda change=change, **how: list(
                caller.sweeps.RunSweep(patching_pb2.RunSweepRequest(**{"model": TINY} | change), **how)
            )
            for change in (
                {"pairs": [pair_of(PLANTED, f"{PLANTED} {PLANTED}")]},
                {"pairs": [pair_of("Mary gave", "John gave", clean_answer=PLANTED)]},
                {"model": named, "pairs": [pair_of("Mary gave", "John gave")]},
                {"pairs": [pair_of("Mary gave", "John gave")], "sae": PLANTED},
            )
        ),
        *(
            lambda change=change, **how: caller.captures.StartCapture(
                capture_pb2.StartCaptureRequest(specification=specification("planted", **change)), **how
            )
            for change in ({"dataset": PLANTED}, {"model": PLANTED}, {"dataset": "broken.jsonl"})
        ),
    ]
    for question in questions:
        _refused(lambda question=question: question(**_with(caller, "planted-request")))
    attention = model_pb2.GetAttentionRequest(model=TINY, text=prompt(PLANTED))
    stranger = {"metadata": workers.metadata(WRONG_TOKEN), "timeout": CALL_SECONDS}
    _refused(lambda: caller.models.GetAttention(attention, **stranger))
    for process in ("replica", "coordinator"):
        logs.line(request_id="planted-request", process=process)
    secrets = (PLANTED, WRONG_TOKEN, workers.token)
    texts = dict(logs.texts())
    assert len(texts) > 10  # Ray's
    assert {path: secret for path, text in texts.items() for secret in secrets if secret in text} == {}


@pytest.fixture
def client_spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Of this process, which is the client only: the service is another one."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_provider", provider)
    yield exporter
    provider.shutdown()


def test_a_question_has_one_trace(
    workers: WorkerProcess, receiver: Receiver, folder: Path, client_spans: InMemorySpanExporter
) -> None:
    variables = {
        "ACTSTORE_STORE": str(folder / "store"),
        "ACTSTORE_TOKEN": "planted-token",
        "ACTSTORE_GATEWAY": workers.address,
        "ACTSTORE_GATEWAY_TOKEN": workers.token,
    }
    with running_service(**variables, **receiver.variables) as ready:
        with actstore.connect(ready["address"], token="planted-token") as lab:
            lab.attention("tiny", PROMPT)
        (client,) = (span for span in client_spans.get_finished_spans() if span.name == PATH)
        trace = f"{client.context.trace_id:032x}"
        service = receiver.span(trace=trace, process="service")
        gateway = receiver.span(trace=trace, process="gateway")
        replica = receiver.span(trace=trace, process="replica")
    assert service.parent == f"{client.context.span_id:016x}"
    assert (gateway.parent, replica.parent) == (service.own, gateway.own)
    assert (service.name, gateway.name, replica.name) == (PATH, PATH, "replica/GetAttention")
    assert len({span.attributes["actstore.request_id"] for span in (service, gateway, replica)}) == 1
    assert not any(secret.encode() in receiver.bytes for secret in (PROMPT, "planted-token", workers.token))
