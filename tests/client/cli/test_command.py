"""The command as a shell sees it: stdout, stderr, exit status."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from actstore._cli.main import main
from actstore_api.records.patching import Screen, StoredSource
from actstore_service.server import Service
from tests.client.conftest import SERVICE_TOKEN
from tests.client.workers import stand_in as planted
from tests.client.workers.stand_in import StandInWorkers
from tests.stored_run import EVERYWHERE, FIRING, GROWTH, MODEL, SAE, SILENT
from tests.waiting import PATIENCE_SECONDS

Done = subprocess.CompletedProcess[str]
PATCH = ("patch", "planted-model", "--clean", "a b", "--corrupt", "a c", "--answers", " Mary", " John")


def actstore(*arguments: str, address: str) -> Done:
    """In this process: the import of the client takes longer than what is asked."""
    with (
        patch.dict(os.environ, _settings(address)),
        redirect_stdout(io.StringIO()) as stdout,
        redirect_stderr(io.StringIO()) as stderr,
    ):
        try:
            status = main(arguments)
        except SystemExit as end:  # argparse's
            status = int(end.code or 0)
    return Done(arguments, status, stdout.getvalue(), stderr.getvalue())


def actstore_process(*arguments: str, address: str) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "actstore", *arguments],
        env=os.environ | _settings(address), capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip


def _settings(address: str) -> dict[str, str]:
    return {"ACTSTORE_ADDRESS": address, "ACTSTORE_TOKEN": SERVICE_TOKEN, "MPLBACKEND": "Agg"}


@pytest.fixture(params=["service", "store"])
def address(request: pytest.FixtureRequest) -> str:
    """Questions about stored data go to a service or to a folder."""
    found: Any = request.getfixturevalue(request.param)
    return found.address if isinstance(found, Service) else str(found)


def said(done: Done) -> Any:
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_runs(address: str) -> None:
    done = actstore_process("runs", address=address)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "5 runs"
    names = [row["name"] for row in said(actstore("runs", "--json", address=address))["rows"]]
    assert names == ["bfloat16", "empty", "float16", "partial", "planted"]


def test_models_that_captures_have_loaded(store: Path) -> None:
    found = said(actstore("models", "--json", address=str(store)))
    assert [(row["family"], row["loaded"], row["available"]) for row in found["models"]] == [("gpt2", True, None)]
    assert [row["name"] for row in found["saes"]] == [SAE]
    text = actstore("models", address=str(store)).stdout
    assert "1 SAEs" in text
    assert "a bucket knows no more" in text


def test_models_and_datasets_that_a_capture_can_name(service: Service, store: Path) -> None:
    found = said(actstore("models", "--json", address=service.address))
    names = [[(row["name"], row["loaded"], row["available"]) for row in found[kind]] for kind in ("models", "saes")]
    assert names[0] == [("another", False, True), (MODEL, True, True)]
    assert names[1] == [("another-sae", False, True), (SAE, True, False)]
    assert (found["models"][0]["revision"], found["models"][0]["family"]) == ("step9", "llama")
    listed = said(actstore("datasets", "--json", address=service.address))
    assert [row["name"] for row in listed["rows"]] == ["asyncio", "text.jsonl"]
    assert "Hugging Face hub are allowed" in actstore("models", address=service.address).stdout
    assert "NEEDS_SERVICE" in actstore("datasets", address=str(store)).stderr


def test_captures_that_wait(service: Service) -> None:
    rows = {row["run"]: row for row in said(actstore("captures", "--json", address=service.address))["rows"]}
    assert (rows["partial"]["state"], rows["partial"]["position"]) == ("queued", 2)


def test_norms(address: str, tmp_path: Path) -> None:
    arguments = ("norms", "planted", "--fit", "--layers", "0:3", "--exclude", "bos", "special")
    found = said(actstore(*arguments, "--json", address=address))
    assert found["growth"]["rate"] == pytest.approx(GROWTH, rel=1e-6)
    assert len(found["profile"]["rows"]) == 3
    done = actstore(*arguments, "--plot", str(tmp_path / "norms.png"), address=address)
    assert "Growth of resid_post: x1.5 a layer" in done.stdout
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")


def test_norms_of_another_kind_by_position(address: str) -> None:
    asked = ("--sites", "resid_post.1", "--by", "position", "--quantity", "rms")
    found = said(actstore("norms", "planted", *asked, "--json", address=address))["profile"]
    assert (found["quantity"], found["by"], found["excluded"]) == ("rms", "position", ["bos"])
    assert [row["position"] for row in found["rows"]] == list(range(1, 16))


def test_growth_of_several_runs(address: str, tmp_path: Path) -> None:
    arguments = ("norms", "planted", "bfloat16", "--exclude", "bos", "special")
    found = said(actstore(*arguments, "--json", address=address))
    actstore(*arguments, "--plot", str(tmp_path / "several.png"), address=address)
    assert [growth["rate"] for growth in found["growth"]] == pytest.approx([GROWTH] * 2, rel=1e-6)
    assert (tmp_path / "several.png").read_bytes().startswith(b"\x89PNG")
    done = actstore("norms", "planted", "bfloat16", "float16", "--fit", "resid_post.1", address=address)
    assert "a number for each run, or revisions that all end in one" in done.stderr


def test_feature(address: str, tmp_path: Path) -> None:
    found = said(actstore("feature", "planted", SAE, str(FIRING), "-k", "2", "--json", address=address))
    assert [row["rank"] for row in found["top"]["rows"]] == [1, 2]
    assert found["statistics"]["active_tokens"] == 20
    done = actstore("feature", "planted", SAE, str(FIRING), "--plot", str(tmp_path / "f.png"), address=address)
    assert "«·word24»" in done.stdout
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_a_feature(service: Service, store: Path, tmp_path: Path) -> None:
    arguments = ("feature", "planted", SAE, str(FIRING), "-k", "2", "--html", str(tmp_path / "f.html"))
    done = actstore(*arguments, address=service.address)
    assert "Logit lens of the decoder direction" in done.stdout
    assert "Feature 3" in (tmp_path / "f.html").read_text()
    found = said(actstore("feature", "planted", SAE, str(FIRING), "--json", address=service.address))
    assert found["missing"] == {}
    alone = said(actstore("feature", "planted", SAE, str(SILENT), "--stored-only", "--json", address=str(store)))
    assert set(alone["missing"].values()) == {"not asked for"}
    assert alone["token_r2"]["token_r2"] is None


def test_features_by_statistics(address: str) -> None:
    arguments = ("features", "planted", SAE, "--density", "0.1", "-", "--order", "maximum", "--with-token-r2")
    found = said(actstore(*arguments, "--json", address=address))
    assert [row["feature"] for row in found["rows"]] == [FIRING, EVERYWHERE]
    assert found["rows"][0]["token_r2"] < 1.0
    ascending = said(actstore("features", "planted", SAE, "-k", "1", "--ascending", "--json", address=address))
    assert [row["density"] for row in ascending["rows"]] == [0.0]


def test_features_by_token_and_by_text(service: Service, store: Path) -> None:
    by_id = said(actstore("features", "planted", SAE, "--token", "5", "--json", address=str(store)))
    by_text = said(actstore("features", "planted", SAE, "--token", " word5", "--json", address=service.address))
    assert by_id == by_text
    of_text = ("features", "planted", SAE, "--text", "say word6 word9")
    found = said(actstore(*of_text, "--density", "-", "0.9", "--json", address=service.address))
    assert [row["feature"] for row in found["rows"]] == [FIRING]
    refused = actstore(*of_text, "--maximum", "1", "-", address=service.address)
    assert refused.returncode == 1
    assert "cannot be searched by maximum" in refused.stderr


def test_check_sae(service: Service) -> None:
    found = said(actstore("check-sae", "planted", SAE, "--n-tokens", "64", "--json", address=service.address))
    assert found["warnings"] == []
    wrong = actstore_process("check-sae", "float16", SAE, address=service.address)
    assert (wrong.returncode, wrong.stderr) == (3, "")
    assert "zeros would do better" in wrong.stdout


def test_a_capture_says_which_sae_looks_wrong(service: Service) -> None:
    arguments = ("capture", "planted-model", "--dataset", "text", "--run", "float16", "--json")
    done = actstore(*arguments, address=service.address)
    assert done.returncode == 0
    assert "zeros would do better" in done.stderr
    assert "zeros would do better" in json.loads(done.stdout)["warnings"][0]
    assert actstore(*arguments, "--no-check", address=service.address).stderr == ""


def test_capture(service: Service) -> None:
    found = said(actstore("capture", "planted-model", "--dataset", "text", "--json", address=service.address))
    files = {"read": 0, "not_read": 0, "first_not_read": []}
    assert found == {"run": "planted", "complete": True, "tokens": 69, "warnings": [], "dataset_files": files}
    mixed = ("capture", "planted-model", "--dataset", "text", "--run", planted.MIXED, "--json")
    done = actstore(*mixed, address=service.address)
    left_out = "20 files were read; 3 were not (notes, .DS_Store, ...)"
    assert done.stderr == f"actstore: {left_out}\n"
    assert json.loads(done.stdout)["dataset_files"]["first_not_read"] == ["notes", ".DS_Store"]
    assert left_out in actstore(*mixed[:-1], "--estimate", address=service.address).stdout
    arguments = ("capture", "planted-model", "--dataset", "text", "--run", "slow", "--no-wait", "--json")
    assert said(actstore(*arguments, address=service.address)) == {"run": "slow"}
    assert said(actstore("cancel", "slow", "--json", address=service.address))["state"] == "cancelled"


def test_patch(service: Service, tmp_path: Path) -> None:
    found = said(actstore(*PATCH, "--sites", "z", "--layers", "1", "--json", address=service.address))
    assert len(found["rows"]) == 2 * 5 * planted.HEADS
    estimate = said(actstore(*PATCH, "--sites", "z", "--layers", "1", "--estimate", "--json", address=service.address))
    assert (estimate["cells"], estimate["seconds"]) == (len(found["rows"]), 1.5)
    done = actstore_process(*PATCH, "--plot", str(tmp_path / "sweep.png"), address=service.address)
    assert "logit difference 3 clean, -1 corrupt" in done.stdout
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_replaced_tokens_are_compared(service: Service, workers: StandInWorkers) -> None:
    corrupt = ["say word9 word7", "say word8 word5"]
    asked = (
        "compare-tokens",
        "tiny",
        "--clean",
        "say word6 word7",
        "--corrupt",
        *corrupt,
        "--layers",
        "1",
        "--draws",
        "9",
    )
    found = said(actstore(*asked, "--json", address=service.address))
    assert list(found["verdicts"]) == list(workers.requests[-1].corrupt) == corrupt
    assert (list(workers.requests[-1].layers), workers.requests[-1].draws) == ([1], 9)
    assert "no token stands out" in actstore(*asked, address=service.address).stdout


def test_patch_says_what_takes_the_place(service: Service, workers: StandInWorkers) -> None:
    said(
        actstore(
            *PATCH, "--sae", "planted-sae", "--features", "3", "5", "--sae-error", "dropped", "--source", "resample",
            "--stored", "planted", "--span", "who", "a", "a", "--span", "last", "b", "c",
            "--receivers", "q.1.0", "mlp_in.1", "--path-mlps", "frozen", "--json",
            address=service.address,
        )
    )  # fmt: skip
    request = workers.requests[-1]
    assert (request.sae, list(request.features), request.stored) == ("planted-sae", [3, 5], StoredSource("planted"))
    assert [(span.name, span.clean, span.corrupt) for span in request.spans] == [
        ("who", "a", "a"), ("last", "b", "c"),
    ]  # fmt: skip
    assert list(request.receivers) == ["q.1.0", "mlp_in.1"]
    assert request.path_mlps == "frozen"


def test_what_belongs_to_an_option_needs_it(service: Service, workers: StandInWorkers) -> None:
    for more, first in ((("--sae-error", "dropped"), "--sae"), (("--path-mlps", "frozen"), "--receivers"),
                        (("--grad-drop",), "--screen")):  # fmt: skip
        done = actstore(*PATCH, *more, address=service.address)
        assert done.returncode == 1
        assert f"says nothing without {first}" in done.stderr
    said(actstore(*PATCH, "--screen", "3", "--grad-drop", "--json", address=service.address))
    assert workers.requests[-1].screen == Screen(3, grad_drop=True)


def test_a_refusal_is_one_block_and_status_1(address: str) -> None:
    done = actstore_process("norms", "nothing-there", address=address)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "actstore: there is no run 'nothing-there'"
    assert lines[-1].startswith("  next step: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [(), ("dance",), ("norms",), ("feature", "planted", SAE, "three")])
def test_what_is_no_command_has_status_2(arguments: tuple[str, ...], store: Path) -> None:
    done = actstore(*arguments, address=str(store))
    assert done.returncode == 2
    assert "usage: actstore" in done.stderr


def test_live_commands_need_a_service(store: Path) -> None:
    done = actstore(*PATCH, address=str(store))
    assert done.returncode == 1
    assert "NEEDS_SERVICE" in done.stderr


def test_a_terminal_that_knows_ascii_alone(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = actstore_process("norms", "planted", address=str(store))
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xb7 model planted-model" in done.stdout


@pytest.mark.parametrize(("plot", "said"), [("nowhere/norms.png", "No such file"), ("norms.unknown", "svg")])
def test_a_file_that_cannot_be_written_is_no_traceback(plot: str, said: str, store: Path) -> None:
    done = actstore("norms", "planted", "--plot", plot, address=str(store))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("actstore: ")
    assert plot in done.stderr
    assert said in done.stderr


def test_a_reader_that_leaves_is_no_traceback(store: Path) -> None:
    environment = {**os.environ, "ACTSTORE_ADDRESS": str(store)}
    command = f"{sys.executable} -m actstore feature planted {SAE} 0 -k 7 | true"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)  # noqa: S607
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
