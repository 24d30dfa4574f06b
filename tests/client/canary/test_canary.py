"""The canary against workers of the same contract: it sings as long as answers are the golden ones."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

from actstore import Lab, connect
from actstore._canary import check, questions
from actstore._cli.main import main
from actstore_api.metrics import Exporter, exported_by
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket
from tests.client.conftest import SERVICE_TOKEN
from tests.client.workers.stand_in import TOKEN, StandInWorkers
from tests.stored_run import FIRING, MODEL, SAE, write_stored_run


class ZeroWorkers(StandInWorkers):
    """Everything is there, and every number is 0: the failure that no error tells."""

    def RunSweep(self, asked, context):
        for answer in super().RunSweep(asked, context):
            rows = getattr(answer.update, "rows", None)
            if rows is not None:
                zeros = pa.array([0.0] * rows.num_rows)
                index = rows.schema.get_field_index("normalized")
                object.__setattr__(answer.update, "rows", rows.set_column(index, "normalized", zeros))
            yield answer


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The questions are about the planted run, which has other names."""
    monkeypatch.setattr(questions, "MODEL", MODEL)
    monkeypatch.setattr(questions, "SAE", SAE)
    monkeypatch.setattr(questions, "LAYERS", (0, 1))


@pytest.fixture
def expected(remote: Lab) -> dict[str, object]:
    """What the stand-in answers when nothing is wrong."""
    return {"feature": FIRING, **dict(questions.answers(remote, FIRING, "planted"))}


@pytest.fixture
def zeros(tmp_path: Path) -> Iterator[Lab]:
    """A lab whose workers answer zeros, and captured zeros."""
    (tmp_path / "zeros").mkdir()
    bucket = open_bucket(str(tmp_path / "zeros"))
    write_stored_run(bucket, scale=0.0)
    workers = ZeroWorkers()
    free = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "token": SERVICE_TOKEN}
    service = Service(bucket, Settings(**free, gateway=workers.address, gateway_token=TOKEN))
    with connect(service.address, token=SERVICE_TOKEN) as lab:
        yield lab
    service.stop()
    workers.close()


def test_it_is_right_where_nothing_changed(remote: Lab, expected: dict[str, object]) -> None:
    verdict = check.canary(remote, "planted", expected)
    assert verdict.right, verdict.wrong
    assert set(verdict.found) == set(check.CHECKS)


def test_workers_that_answer_zeros_trip_it(zeros: Lab, expected: dict[str, object]) -> None:
    verdict = check.canary(zeros, "planted", expected)
    assert set(verdict.wrong) == {"norms", "denoise", "noise"}
    assert "found 0 where" in verdict.wrong["noise"]


def test_a_refusal_is_wrong_and_so_is_what_follows(remote: Lab, expected: dict[str, object]) -> None:
    verdict = check.canary(remote, "absent", expected)
    assert set(verdict.wrong) == set(check.CHECKS)
    assert all(said.startswith("RUN_NOT_FOUND") for said in verdict.wrong.values())


def test_a_number_that_is_missing_or_nan_is_wrong(expected: dict[str, object]) -> None:
    assert check._difference([1.0, float("nan")], [1.0, 2.0])
    assert check._difference([1.0], [1.0, 2.0])
    assert check._difference([1.0, None], [1.0, 2.0])
    assert check._difference([1.0, 2.01], [1.0, 2.0])
    assert not check._difference([1.0, 2.0005], [1.0, 2.0])


def test_the_command_says_it_by_status_json_and_metrics(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTSTORE_TOKEN", SERVICE_TOKEN)
    file = tmp_path / "canary.prom"
    status = main(["canary", "--json", "--address", service.address, "--metrics", str(file)])
    told = json.loads(capsys.readouterr().out)
    assert (status, told["right"]) == (3, False)
    assert set(told["wrong"]) == set(check.CHECKS)
    families = {family.name: family for family in text_string_to_metric_families(file.read_text())}
    assert set(families) == {metric.name for metric in exported_by(Exporter.CANARY)}
    checks = {sample.labels["check"]: sample.value for sample in families["actstore_canary_ok"].samples}
    assert checks == dict.fromkeys(check.CHECKS, 0)
    (metric,) = [metric for metric in exported_by(Exporter.CANARY) if metric.labels]
    assert set(metric.labels[0].values) == set(check.CHECKS)
