"""The main job as its users run it: the local stack itself, SeaweedFS, the bundled model, the public client."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPTNeoXForCausalLM

import actstore
from models import corpus

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
BUF = ROOT / "node_modules" / ".bin" / "buf"
SAE = "pystdlib-resid_post.1"
SITE = "resid_post.1"
TOKENS = 20_000
CLEAN = "for index, value in enumerate(values):\n    print(index,"
CORRUPT = "for index, item in enumerate(values):\n    print(index,"


@dataclass(frozen=True)
class MainJob:
    stack: actstore.LocalStack
    lab: actstore.Lab
    run: actstore.Run


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MainJob]:
    folder = tmp_path_factory.mktemp("main-job")
    datasets = _datasets(folder / "datasets")
    with actstore.LocalStack(
        folder / "store",
        model_folders=[MODELS],
        dataset_folders=[datasets],
        s3=True,
        port=0,
        state_folder=folder / "state",
    ) as stack:
        lab = stack.lab
        capture = lab.capture(
            "pystdlib", dataset="stdlib.jsonl", sites=[SITE], saes=[SAE], max_tokens=TOKENS, sequences_per_shard=16
        )
        yield MainJob(stack, lab, capture.wait(progress=False))
        lab.close()


def _datasets(folder: Path) -> Path:
    folder.mkdir()
    texts = [text for text, _ in zip(corpus.texts(held_out=True), range(20), strict=False)]
    (folder / "stdlib.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "empty.jsonl").write_text("")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    return folder


def test_the_run_has_every_token_once(job: MainJob) -> None:
    tokens = job.run.tokens()
    rows = list(zip(tokens.table["sequence"].to_pylist(), tokens.table["position"].to_pylist(), strict=True))
    assert job.run.complete
    assert len(rows) == len(set(rows)) == job.run.tokens_total
    assert TOKENS - 256 < len(rows) <= TOKENS


def test_stored_rows_are_those_of_the_model_alone(job: MainJob) -> None:
    """The whole way, against a forward pass that shares no code with actstore."""
    rows = job.run.activations(SITE, range(3))
    ids = job.run.tokens(range(3))
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "pystdlib")
    model = GPTNeoXForCausalLM.from_pretrained(MODELS / "pystdlib", dtype=torch.float32)
    seen: list[torch.Tensor] = []
    model.gpt_neox.layers[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    sequences, tokens = (np.array(ids.table[name].to_pylist()) for name in ("sequence", "token"))
    for sequence in range(3):
        own = tokens[sequences == sequence]
        assert own[0] == tokenizer.bos_token_id
        with torch.no_grad():
            model(torch.tensor(own[None]))
    expected = torch.cat([output[0] for output in seen]).numpy()
    np.testing.assert_allclose(rows.to_numpy(), expected, atol=2e-3, rtol=1e-4)


def test_the_bucket_alone_answers_the_same(job: MainJob) -> None:
    direct = actstore.connect(job.stack.store, s3=job.stack.s3_access).run(job.run.name)
    assert direct.norms().table.equals(job.run.norms().table)
    assert direct.norms().fit_growth().rate == job.run.norms().fit_growth().rate
    strongest = max(range(20), key=lambda index: job.run.feature(SAE, index).statistics().maximum)
    ours, theirs = (run.feature(SAE, strongest).top(5) for run in (job.run, direct))
    assert len(ours) > 0
    assert ours.table.equals(theirs.table)


def test_the_patch_moves_the_answer_both_ways(job: MainJob) -> None:
    """Only one token differs, so layer 0 there carries the whole difference, and nothing before it carries any."""
    sweep = job.lab.patch("pystdlib", clean=CLEAN, corrupt=CORRUPT, answers=(" value", " item"), progress=False)
    cells = sweep.to_pandas()
    pairs = zip(sweep.tokens["clean"], sweep.tokens["corrupt"], strict=True)
    differing = next(position for position, (clean, corrupt) in enumerate(pairs) if clean != corrupt)
    first = cells[(cells.site == "resid_pre") & (cells.layer == 0)]
    assert set(cells.direction) == {"denoise", "noise"}
    assert np.allclose(first[first.position == differing].normalised, 1, atol=1e-4)
    assert np.allclose(cells[cells.position < differing].normalised, 0, atol=1e-4)
    assert sweep.clean_logit_difference > 0 > sweep.corrupt_logit_difference


@pytest.mark.parametrize(
    ("changed", "error", "reason", "field"),
    [
        ({"model": "absent"}, actstore.NotFound, "MODEL_NOT_FOUND", "model"),
        ({"model": "../pystdlib"}, actstore.ActstoreError, None, "model"),
        ({"sites": ["resid_post.9"]}, actstore.BadRequest, "SITE_UNKNOWN", "site"),
        ({"saes": ["absent"]}, actstore.NotFound, "SAE_NOT_FOUND", "sae"),
        ({"dataset": "absent.jsonl"}, actstore.NotFound, "DATASET_NOT_FOUND", "dataset"),
        ({"dataset": "empty.jsonl"}, actstore.BadRequest, "DATASET_EMPTY", "dataset"),
        ({"dataset": "latin.txt"}, actstore.BadRequest, "DATASET_UNREADABLE", "dataset"),
        ({"dataset": "../../etc/passwd"}, actstore.ActstoreError, None, "dataset"),
        ({"name": "../up"}, actstore.BadRequest, "NAME_INVALID", None),
    ],
)
def test_bad_captures(
    job: MainJob, changed: dict[str, object], error: type[actstore.ActstoreError], reason: str | None, field: str | None
) -> None:
    asked: dict[str, object] = {"model": "pystdlib", "dataset": "stdlib.jsonl", "sites": [SITE], "max_tokens": 1000}
    with pytest.raises(error) as refused:
        job.lab.capture(**{**asked, **changed})  # type: ignore[arg-type]
    assert reason in (None, refused.value.reason)
    assert field in (None, refused.value.field)
    assert refused.value.value is not None
    assert refused.value.allowed


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"corrupt": CORRUPT + " x"}, "PROMPT_LENGTHS_DIFFER"),
        ({"answers": (" value", " enumerations")}, "ANSWER_NOT_ONE_TOKEN"),
        ({"sites": ["resid_mid"]}, "SITE_UNKNOWN"),
        ({"layers": [4]}, "LAYER_OUT_OF_RANGE"),
        ({"model": "absent"}, "MODEL_NOT_FOUND"),
    ],
)
def test_bad_sweeps(job: MainJob, changed: dict[str, object], reason: str) -> None:
    asked: dict[str, object] = {"clean": CLEAN, "corrupt": CORRUPT, "answers": (" value", " item")}
    model = str(changed.pop("model", "pystdlib"))
    with pytest.raises(actstore.ActstoreError) as refused:
        job.lab.patch(model, progress=False, **{**asked, **changed})  # type: ignore[arg-type]
    assert refused.value.reason == reason


def test_bad_questions(job: MainJob) -> None:
    with pytest.raises(actstore.NotFound, match="absent"):
        job.lab.run("absent")
    with pytest.raises(actstore.BadRequest) as refused:
        job.run.feature(SAE, 1_000_000)
    assert refused.value.reason == "FEATURE_OUT_OF_RANGE"


@pytest.mark.skipif(not BUF.exists(), reason="buf is missing: the workers are left untested by a foreign client")
def test_a_foreign_client_reaches_the_workers(job: MainJob) -> None:
    """`buf curl` through the service and the gateway to a model replica and back, as a stream."""
    request = {"model": {"name": "pystdlib"}, "clean": CLEAN, "corrupt": CORRUPT, "sites": ["resid_pre"]}
    answers = {"cleanAnswer": " value", "corruptAnswer": " item"}
    bearer = f"authorization: Bearer {job.stack.token}"
    done = subprocess.run(
        [
            str(BUF),
            "curl",
            "--http2-prior-knowledge",
            "--protocol=grpc",
            f"--header={bearer}",
            f"--reflect-header={bearer}",
            "--data",
            json.dumps(request | answers),
            f"http://{job.stack.address}/actstore_api.v1.PatchingService/RunSweep",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"cleanLogitDifference"' in done.stdout
