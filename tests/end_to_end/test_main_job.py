"""The main job as its users run it: the local stack itself, SeaweedFS, the bundled model, the public client."""

import gzip
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, GPTNeoXForCausalLM

import actstore
from actstore_api.records.feature import GetFeatureStatistics
from models import corpus
from tests.made_models.lens_folders import save_lens_folder
from tests.made_models.small_models import save_family, save_llama

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
BUF = ROOT / "node_modules" / ".bin" / "buf"
SAE = "pystdlib-resid_post.1"
SITE = "resid_post.1"
FEATURE = 303  # a common one: in prose, the word after a form of `to be`
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
    with (
        chdir(_code_of_a_user(folder / "code")),
        actstore.LocalStack(
            folder / "store",
            model_folders=[MODELS, _unfit_saes(folder / "unfit"), _further_models(folder / "further")],
            dataset_folders=[datasets],
            s3=True,
            port=0,
            state_folder=folder / "state",
        ) as stack,
    ):
        lab = stack.lab
        capture = lab.capture(
            "pystdlib",
            dataset="stdlib.jsonl",
            dense_sites=[SITE],
            saes=[SAE],
            max_tokens=TOKENS,
            batching=actstore.Batching(sequences_per_shard=16),
        )
        yield MainJob(stack, lab, capture.wait(progress=False))
        lab.close()


def _code_of_a_user(folder: Path) -> Path:
    """In which a stack starts: no process of it, and no worker of Ray's, may take this module for Python's own."""
    folder.mkdir()
    (folder / "queue.py").write_text("raise RuntimeError('of the user')")
    return folder


def _datasets(folder: Path) -> Path:
    folder.mkdir()
    texts = [text for text, _ in zip(corpus.texts(held_out=True), range(20), strict=False)]
    (folder / "stdlib.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "empty.jsonl").write_text("")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    rows = [json.dumps({"text": text, "id": number, "url": f"https://x/{number}"}) for number, text in enumerate(texts)]
    (folder / "mixed" / ".staging").mkdir(parents=True)
    (folder / "mixed" / "part-0.jsonl").write_text("\n".join(rows[:2]))
    (folder / "mixed" / "lang=en, part 1.jsonl.gz").write_bytes(gzip.compress("\n".join(rows[2:4]).encode()))
    (folder / "mixed" / ".staging" / "part-2.jsonl").write_text(rows[4])
    (folder / "mixed" / "README.md").write_text("about")
    (folder / "archive").mkdir()
    (folder / "archive" / "all.tar.gz").write_bytes(b"")
    return folder


def _unfit_saes(folder: Path) -> Path:
    """SAEs in SAELens's format, each whole in itself, that do not fit the bundled model."""
    for name, d_in, hook in (
        ("wrong-width", 64, "blocks.1.hook_resid_post"),
        ("wrong-layer", 128, "blocks.9.hook_resid_post"),
        ("wrong-site", 128, "blocks.1.attn.hook_rot_q"),
    ):
        (folder / name).mkdir(parents=True)
        config = {"architecture": "standard", "d_in": d_in, "d_sae": 8, "metadata": {"hook_name": hook}}
        (folder / name / "cfg.json").write_text(json.dumps(config))
        shapes = {"W_enc": (d_in, 8), "W_dec": (8, d_in), "b_enc": (8,), "b_dec": (d_in,)}
        tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
        save_file(tensors, folder / name / "sae_weights.safetensors")
    return folder


def _further_models(folder: Path) -> Path:
    """Tiny random ones: with heads that share keys, an encoder, and one without MLPs in TransformerLens's form."""
    save_llama(folder / "grouped")
    save_family("bert", folder / "encoder")
    save_lens_folder(folder / "attention-alone")
    return folder


def test_the_run_has_every_token_once(job: MainJob) -> None:
    tokens = job.run.tokens()
    rows = list(zip(tokens.table["sequence"].to_pylist(), tokens.table["position"].to_pylist(), strict=True))
    assert job.run.complete
    assert len(rows) == len(set(rows)) == job.run.tokens_total
    assert TOKENS - 256 < len(rows) <= TOKENS


def test_what_a_capture_can_name_is_listed(job: MainJob) -> None:
    """Whether it was loaded or not, and nothing that is no model or holds no documents."""
    models = {(row["name"], row["revision"]): row for row in job.lab.models()}
    assert {name for name, _ in models} == {"pystdlib", "grouped", "encoder", "attention-alone"}
    assert models["pystdlib", ""]["loaded"]
    assert not models["encoder", ""]["loaded"]
    assert models["pystdlib", "step64"]["family"] == "gpt_neox"
    assert all(row["available"] for row in models.values())
    assert {SAE, "wrong-width"} <= {row["name"] for row in job.lab.saes()}
    datasets = [row["name"] for row in job.lab.datasets()]
    assert (datasets, {"latin.txt", "stdlib.jsonl"} - {*datasets}) == (sorted(datasets), set())


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
    assert direct.fit_growth().rate == job.run.fit_growth().rate
    ours, theirs = (run.feature(SAE, FEATURE).top(5) for run in (job.run, direct))
    assert len(ours) > 0
    assert ours.table.equals(theirs.table)


def test_a_folder_is_read_whole_and_its_documents_are_told(job: MainJob) -> None:
    """Compressed and not, whatever the names; what is not read is named before and while it is captured."""
    asked: Any = {"dataset": actstore.Dataset("mixed", source_field="url"), "context_length": 64, "saes": [SAE]}
    estimate = job.lab.estimate_capture("pystdlib", **asked)
    assert estimate.documents == 4
    assert estimate.dataset_files == actstore.DatasetFiles(2, 2, ("README.md", ".staging/"))
    capture = job.lab.capture("pystdlib", **asked)
    run = capture.wait(progress=False, check_saes=False)
    assert capture.dataset_files == estimate.dataset_files
    assert run.specification.dataset.source_field == "url"
    in_order = [f"https://x/{number}" for number in (2, 3, 0, 1)]
    assert list(dict.fromkeys(run.tokens().table["source"].to_pylist())) == in_order
    assert {row["source"] for row in run.feature(SAE, FEATURE).top(5)} <= set(in_order)
    assert {row["source"] for row in job.run.feature(SAE, FEATURE).top(5)} == {"stdlib.jsonl"}


def test_the_patch_moves_the_answer_both_ways(job: MainJob) -> None:
    """Only one token differs, so layer 0 there carries the whole difference, and nothing before it carries any."""
    sweep = job.lab.patch("pystdlib", clean=CLEAN, corrupt=CORRUPT, answers=(" value", " item"), progress=False)
    cells = sweep.to_pandas()
    pairs = zip(sweep.tokens["clean"], sweep.tokens["corrupt"], strict=True)
    differing = next(position for position, (clean, corrupt) in enumerate(pairs) if clean != corrupt)
    first = cells[(cells.site == "resid_pre") & (cells.layer == 0)]
    assert set(cells.direction) == {"denoise", "noise"}
    assert np.allclose(first[first.position == differing].normalized, 1, atol=1e-4)
    assert np.allclose(cells[cells.position < differing].normalized, 0, atol=1e-4)
    assert sweep.clean_logit_difference > 0 > sweep.corrupt_logit_difference


def test_the_answer_is_sent_to_the_values_of_three_heads(job: MainJob) -> None:
    """docs/explanation/patching.md has the numbers."""
    heads = ["v.3.0", "v.3.1", "v.3.2"]
    asked = {"clean": CLEAN, "corrupt": CORRUPT, "answers": (" value", " item"), "positions": [4], "progress": False}
    sweep = job.lab.patch("pystdlib", sites=["embedding", "mlp_out"], receivers=heads, **asked)
    found = {(row["site"], row["layer"], row["direction"]): row["normalized"] for row in sweep.to_arrow().to_pylist()}
    assert len(found) == 8
    assert found["embedding", None, "denoise"] == pytest.approx(0.782, abs=2e-3)
    assert found["mlp_out", 0, "noise"] == pytest.approx(0.747, abs=2e-3)
    assert sweep.audit.kernel == "resumed"
    frozen = actstore.Receivers(heads, path_mlps="frozen")
    direct = job.lab.patch("pystdlib", sites=["embedding"], receivers=frozen, **asked)
    assert abs(direct.to_arrow()["normalized"].to_numpy()).max() < 2e-3


def test_a_text_given_now_has_the_features_that_are_stored_of_it(job: MainJob) -> None:
    """Through service, gateway and model replica, and what the capture workers stored: the same numbers."""
    tokens = job.run.tokens(range(1)).table
    text = "".join(tokens["text"].to_pylist()[1:])
    features = job.run.features(SAE)
    encoded = features.encode_text(text)
    assert encoded.tokens["token"].to_pylist() == tokens["token"].to_pylist()
    live = encoded.table.to_pandas().query("position > 0")
    feature = int(live.groupby("feature").size().idxmax())
    stored = features[feature].above(0.0, where=actstore.Where(sequences=range(1))).table.to_pandas()
    stored = stored.query("position > 0").sort_values("position")
    live = live[live.feature == feature]
    assert len(live) > 5
    assert live.position.tolist() == stored.position.tolist()
    np.testing.assert_allclose(live.activation, stored.activation, rtol=1e-3, atol=1e-3)


def test_a_feature_page_lacks_nothing_and_its_sae_fits(job: MainJob) -> None:
    page = job.run.feature(SAE, FEATURE).page(k=3)
    assert not page.missing
    check = job.run.features(SAE).check(2048)
    assert not check.warnings
    quantities = {row["quantity"]: row["value"] for row in check.table.to_pylist()}
    assert 0.05 < quantities["fvu"] < 0.25
    assert quantities["loss"] < quantities["loss_reconstructed"] < quantities["loss_zeroed"]


@dataclass(frozen=True)
class Wrong:
    """What is changed in a good request, and what the error says."""

    changed: dict[str, Any]
    error: type[actstore.ActstoreError]
    reason: str
    field: str
    value: str
    # What is listed as allowed; "" where nothing would be.
    allowed: str


NAMES = "[A-Za-z0-9]"
CAPTURES = [
    Wrong({"model": "absent"}, actstore.NotFound, "MODEL_NOT_FOUND", "model", "absent", "pystdlib"),
    Wrong({"model": "../pystdlib"}, actstore.BadRequest, "NAME_INVALID", "model", "..", NAMES),
    Wrong({"dense_sites": ["resid_post.9"]}, actstore.BadRequest, "SITE_UNKNOWN", "site", "resid_post.9", "resid_post"),
    Wrong({"dense_sites": ["residual"]}, actstore.BadRequest, "SITE_UNKNOWN", "site", "residual", "resid_post"),
    Wrong({"norm_sites": ["mlp_out.4"]}, actstore.BadRequest, "SITE_UNKNOWN", "site", "mlp_out.4", "mlp_out"),
    Wrong({"saes": ["absent"]}, actstore.NotFound, "SAE_NOT_FOUND", "sae", "absent", SAE),
    Wrong({"saes": ["wrong-width"]}, actstore.BadRequest, "SAE_MISMATCH", "d_in", "64", "128"),
    Wrong({"saes": ["wrong-layer"]}, actstore.BadRequest, "SAE_MISMATCH", "site", "resid_post.9", "resid_post.0..3"),
    Wrong(
        {"saes": ["wrong-site"]},
        actstore.BadRequest,
        "SAE_MISMATCH",
        "hook_name",
        "blocks.1.attn.hook_rot_q",
        "resid_post.LAYER",
    ),
    Wrong({"dataset": "absent.jsonl"}, actstore.NotFound, "DATASET_NOT_FOUND", "dataset", "absent.jsonl", "stdlib"),
    Wrong({"dataset": "empty.jsonl"}, actstore.BadRequest, "DATASET_EMPTY", "dataset", "empty.jsonl", "some text"),
    Wrong({"dataset": "latin.txt"}, actstore.BadRequest, "DATASET_UNREADABLE", "dataset", "latin.txt", "UTF-8"),
    Wrong(
        {"dataset": "../../etc/passwd"},
        actstore.BadRequest,
        "NAME_INVALID",
        "dataset",
        "../../etc/passwd",
        "without '..'",
    ),
    Wrong(
        {"dataset": "hf:/etc:train"}, actstore.BadRequest, "NAME_INVALID", "dataset", "hf:/etc:train", "hf:OWNER/NAME"
    ),
    Wrong({"dataset": "archive"}, actstore.BadRequest, "DATASET_UNREADABLE", "dataset", "all.tar.gz", ".jsonl"),
    Wrong(
        {"dataset": actstore.Dataset("mixed", row_filters=[("id", "!=", "1")])},
        actstore.BadRequest,
        "ARGUMENT_INVALID",
        "dataset.row_filters",
        "id != '1'",
        "a number",
    ),
    Wrong(
        {"dataset": actstore.Dataset("mixed", source_field="gone")},
        actstore.BadRequest,
        "DATASET_UNREADABLE",
        "dataset.source_field",
        "gone",
        "text",
    ),
    Wrong({"run": "../up"}, actstore.BadRequest, "NAME_INVALID", "run", "../up", NAMES),
    Wrong({"run": "x" * 20_000}, actstore.LimitExceeded, "LIMIT_EXCEEDED", "run", "20000 characters", "at most 128"),
]
# Of which a tokenizer of bytes makes tokens.
BYTES = {"clean": "abcdef", "corrupt": "abXdef", "answers": ("p", "q")}
SWEEPS = [
    Wrong({"model": "absent"}, actstore.NotFound, "MODEL_NOT_FOUND", "model", "absent", "pystdlib"),
    Wrong({"corrupt": CORRUPT + " x"}, actstore.BadRequest, "PROMPT_LENGTHS_DIFFER", "corrupt", "tokens", "tokens"),
    Wrong(
        {"answers": (" value", " enumerations")},
        actstore.BadRequest,
        "ANSWER_NOT_ONE_TOKEN",
        "corrupt_answer",
        " enumerations",
        "one token",
    ),
    Wrong({"sites": ["resid_mid"]}, actstore.BadRequest, "SITE_UNKNOWN", "sites", "resid_mid", "resid_pre"),
    Wrong({"layers": [4]}, actstore.BadRequest, "LAYER_OUT_OF_RANGE", "layers", "4", "0..3"),
    Wrong({"positions": [3, 99]}, actstore.BadRequest, "ARGUMENT_INVALID", "only_positions", "99", "0..16"),
    Wrong({"sites": ["z"], "heads": [4]}, actstore.BadRequest, "SITE_UNKNOWN", "heads", "4", "0..3"),
    # Its four heads share two of keys and values.
    Wrong(
        {"model": "grouped", "sites": ["v"], "heads": [2]} | BYTES,
        actstore.BadRequest,
        "SITE_UNKNOWN",
        "heads",
        "2",
        "0..1",
    ),
    Wrong({"model": "encoder"} | BYTES, actstore.BadRequest, "MODEL_UNSUPPORTED", "model", "encoder", "causal"),
    Wrong(
        {"model": "attention-alone", "sites": ["mlp_out"]} | BYTES,
        actstore.BadRequest,
        "SITE_UNKNOWN",
        "sites",
        "mlp_out",
        "attn_out",
    ),
    Wrong({"sae": "wrong-width"}, actstore.BadRequest, "SAE_MISMATCH", "d_in", "64", "128"),
    Wrong({"sae": "wrong-site"}, actstore.BadRequest, "SAE_MISMATCH", "hook_name", "hook_rot_q", "resid_post.LAYER"),
    Wrong(
        {"clean": [CLEAN] * 256, "corrupt": [CORRUPT] * 256, "answers": [(" value", " item")] * 256},
        actstore.LimitExceeded,
        "LIMIT_EXCEEDED",
        "cells",
        "243712",
        "at most 200000",
    ),
    Wrong({"receivers": ["q.1.4"]}, actstore.BadRequest, "SITE_UNKNOWN", "receivers", "q.1.4", "heads 0..3"),
    Wrong(
        {"receivers": ["k.1"], "layers": [2]},
        actstore.BadRequest,
        "ARGUMENT_INVALID",
        "layers",
        "2",
        "senders before a receiver",
    ),
]


@pytest.mark.parametrize("wrong", CAPTURES, ids=lambda wrong: str(wrong.changed)[:40])
def test_bad_captures(job: MainJob, wrong: Wrong) -> None:
    asked = {"model": "pystdlib", "dataset": "stdlib.jsonl", "dense_sites": [SITE], "max_tokens": 1000} | wrong.changed
    _refused(wrong, lambda: job.lab.capture(**asked))


@pytest.mark.parametrize("wrong", SWEEPS, ids=lambda wrong: str(wrong.changed)[:40])
def test_bad_sweeps(job: MainJob, wrong: Wrong) -> None:
    asked = {"model": "pystdlib", "clean": CLEAN, "corrupt": CORRUPT, "answers": (" value", " item")} | wrong.changed
    _refused(wrong, lambda: job.lab.patch(progress=False, **asked))


def test_a_model_without_mlps_is_swept_like_any_other(job: MainJob) -> None:
    sweep = job.lab.patch("attention-alone", **BYTES, progress=False)
    assert sweep.audit.kernel == "resumed"
    assert set(sweep.table["site"].to_pylist()) == {"resid_pre", "attn_out", "z"}


def test_bad_questions(job: MainJob) -> None:
    absent = Wrong({}, actstore.NotFound, "RUN_NOT_FOUND", "run", "absent", job.run.name)
    past = Wrong({}, actstore.BadRequest, "FEATURE_OUT_OF_RANGE", "feature", "1024", "1023")
    direct = actstore.connect(job.stack.store, s3=job.stack.s3_access)
    for lab in (job.lab, direct):
        run = lab.run(job.run.name)
        _refused(absent, lambda lab=lab: lab.run("absent"))
        _refused(past, lambda run=run: run.feature(SAE, 1024))
        # Past the client's own check, so that the service's shows.
        _refused(past, lambda lab=lab: lab._backend.ask(GetFeatureStatistics(job.run.name, SAE, 1024)))


def _refused(wrong: Wrong, ask: Callable[[], object]) -> None:
    with pytest.raises(wrong.error) as caught:
        ask()
    error = caught.value
    assert (error.reason, error.field) == (wrong.reason, wrong.field), error
    assert wrong.value in str(error.value), error
    assert wrong.allowed in (error.allowed or ""), error
    assert error.next_step


@pytest.mark.skipif(not BUF.exists(), reason="buf is missing: the workers are left untested by a foreign client")
def test_a_foreign_client_reaches_the_workers(job: MainJob) -> None:
    """`buf curl` through the service and the gateway to a model replica and back, as a stream."""
    answers = {"cleanAnswer": {"text": " value"}, "corruptAnswer": {"text": " item"}}
    pair = {"clean": {"text": CLEAN}, "corrupt": {"text": CORRUPT}} | answers
    request = {"model": {"name": "pystdlib"}, "pairs": [pair], "sites": ["resid_pre"]}
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
            json.dumps(request),
            f"http://{job.stack.address}/actstore_api.v1.PatchingService/RunSweep",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"cleanLogitDifference"' in done.stdout
