"""Whether an SAE fits: numbers against a twin over single sequences; warnings where something is wrong on purpose."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actstore_api.records.sae import CheckSae, CheckSaeAnswer
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.capture.plan import Plan, PlanSettings, plan_capture
from actstore_worker.capture.shards.shard import ShardCapture
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.live.answering import LiveAnswers
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.stored_sample import batches, sample_sequences
from actstore_worker.models.loading import load_model
from actstore_worker.models.turns import Turns, share
from models import corpus
from tests.capture_requests import capture_request
from tests.capturing import capture_run, capture_shard
from tests.made_models.plain_model import PlainModel, PlainSae
from tests.made_models.small_models import BERT, BUNDLED_MODELS, change_config, save_gpt2, save_neox, save_sae

CPU = torch.device("cpu")
BUNDLED = "pystdlib-resid_post.1"
WEIGHTS = "sae_weights.safetensors"


class Lab:
    """The bundled model and SAE with a run of held-out text, variations of both, and small random ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("models", "data", "store"):
            (folder / name).mkdir()
        texts = [text for text, _ in zip(corpus.texts(held_out=True), range(6), strict=False)]
        (folder / "data" / "code.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        words = [f"text {number:02d} is longer than the context that {number:02d} has" for number in range(12)]
        (folder / "data" / "words.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
        save_gpt2(folder / "models" / "gpt2")
        save_neox(folder / "models" / "neox")
        BERT["bert"](folder / "models" / "bert")
        save_sae(folder / "models" / "random", "standard", model_name="gpt2")
        self.catalog = ModelCatalog((folder / "models", BUNDLED_MODELS))
        self.bucket: Bucket = open_bucket(str(folder / "store"))
        self.capture("pystdlib", "code.jsonl", "code", max_tokens=9_000)
        self.capture("gpt2", "words.jsonl", "words")
        self.capture("bert", "words.jsonl", "bert")

    def plan(self, model: str, dataset: str, run: str, **options: Any) -> Plan:
        settings = PlanSettings(DatasetPlaces((self.folder / "data",)))
        return plan_capture(capture_request(model, dataset, run, **options), self.catalog, settings)

    def capture(self, model: str, dataset: str, run: str, **options: Any) -> None:
        capture_run(self.plan(model, dataset, run, **options), self.bucket, CaptureWorker(self.bucket, CPU))

    def vary(self, name: str, change: Mapping[str, float], site: str = "", model: str = "pystdlib") -> str:
        """The bundled SAE with tensors multiplied, or at another site."""
        folder = self.folder / "models" / name
        folder.mkdir()
        tensors = load_file(BUNDLED_MODELS / BUNDLED / WEIGHTS)
        save_file({key: tensor * change.get(key, 1.0) for key, tensor in tensors.items()}, folder / WEIGHTS)
        config = json.loads((BUNDLED_MODELS / BUNDLED / "cfg.json").read_text())
        config["metadata"] |= {"model_name": model} | ({"hook_name": site} if site else {})
        (folder / "cfg.json").write_text(json.dumps(config))
        return name

    def check(self, run: str, sae: str, tokens: int = 2048, limits: LiveLimits | None = None) -> CheckSaeAnswer:
        limits = limits or LiveLimits(tokens_per_slice=2048)
        answers = LiveAnswers(self.catalog, self.bucket, CPU, limits)
        question = CheckSae(run, sae, tokens)
        named = answers.model_of(question)
        assert named is not None
        model = load_model(self.catalog.find_model(named.name, named.revision), device=CPU)
        found = answers.answer(question, share(model, Turns()), threading.Event())
        assert isinstance(found, CheckSaeAnswer)
        return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("check"))


def values(check: CheckSaeAnswer) -> dict[str, float]:
    return dict(zip(*(check.quantities[name].to_pylist() for name in ("quantity", "value")), strict=True))


def test_the_bundled_sae_passes(lab: Lab) -> None:
    check = lab.check("code", BUNDLED, 8192)
    found = values(check)
    assert check.warnings == ()
    assert list(found) == [
        "tokens", "l0", "fvu", "dead_share", "loss", "loss_reconstructed", "loss_zeroed", "loss_recovered",
    ]  # fmt: skip
    assert found["l0"] == 16
    claimed = json.loads((BUNDLED_MODELS / BUNDLED / "quality.json").read_text())
    assert found["fvu"] == pytest.approx(claimed["fvu"], abs=0.04)
    assert 0.9 < found["loss_recovered"] < 1
    beside = dict(zip(*(check.quantities[name].to_pylist() for name in ("quantity", "claimed")), strict=True))
    assert {name: value for name, value in beside.items() if value is not None} == {
        name: claimed[name] for name in ("l0", "fvu", "dead_share")
    }
    assert (check.provenance.run, check.provenance.model, check.provenance.dtype) == ("code", "pystdlib", "float32")
    assert list(check.provenance.sae_sha256) == [BUNDLED]
    assert check.provenance.snapshot


@pytest.mark.parametrize(
    ("name", "change", "site", "model", "warned"),
    [
        ("layer-2", {}, "blocks.2.hook_resid_post", "pystdlib", ["fits resid_post.1 better"]),
        ("layer-3", {}, "blocks.3.hook_resid_post", "pystdlib", ["explains nothing", "fits resid_post.1 better"]),
        ("attention", {}, "blocks.1.hook_attn_out", "pystdlib", ["explains nothing", "loss_recovered is -"]),
        (
            "scaled",
            {"b_enc": 10, "b_dec": 10},
            "",
            "pystdlib",
            ["explains nothing", "inputs about 10 times as large: FVU would then be 0.1"],
        ),
        ("decoder-scaled", {"W_dec": 10}, "", "pystdlib", ["explains nothing"]),
        ("other-name", {}, "", "pythia-70m", ["trained on model 'pythia-70m', but this run is from 'pystdlib'"]),
        ("with-owner", {}, "", "somebody/PyStdlib", []),
    ],
)
def test_what_is_wrong_on_purpose_is_named(
    lab: Lab, name: str, change: dict[str, float], site: str, model: str, warned: list[str]
) -> None:
    warnings = lab.check("code", lab.vary(name, change, site, model)).warnings
    for text in warned:
        assert any(text in warning for warning in warnings), warnings
    assert bool(warnings) == bool(warned), warnings


def test_an_sae_of_a_later_model_on_an_earlier_one_is_named(lab: Lab) -> None:
    lab.capture("pystdlib", "code.jsonl", "early", max_tokens=2_000, model_revision="step64")
    warnings = lab.check("early", BUNDLED).warnings
    assert any("from its revision 'step64'" in warning for warning in warnings), warnings
    assert any("explains nothing" in warning for warning in warnings), warnings


def twin(lab: Lab, run: str, sae: str) -> dict[str, float]:
    """A sequence at a time, all logits, in float64."""
    tokens = lab_tokens(lab, run)
    model = PlainModel(load_model(lab.catalog.find_model("gpt2"), device=CPU).module)
    plain = PlainSae(lab.folder / "models" / sae)
    rows, dense, losses = [], [], np.zeros(4)
    for ids in tokens:
        kept = np.array(ids) != 0  # BOS, and the only special token
        x = model.at("resid_post", 1, ids)
        activations = plain.encode(x)
        rows.append(x[kept].astype(np.float64))
        dense.append(activations[kept])
        put_back = torch.from_numpy(np.where(kept[:, None], plain.decode(activations), x)).float()
        zeroed = torch.from_numpy(np.where(kept[:, None], 0, x)).float()
        for number, value in enumerate((None, put_back, zeroed)):
            touches = {} if value is None else {("resid_post", 1): lambda found, value=value: found[0].copy_(value)}
            losses[number] -= model.log_probabilities(ids, touches)[kept[:-1]].sum()
        losses[3] += kept[:-1].sum()
    x, activations = np.concatenate(rows), np.concatenate(dense)
    loss, reconstructed, nothing = losses[:3] / losses[3]
    return {
        "tokens": len(x),
        "l0": (activations > 0).sum(1).mean(),
        "fvu": ((x - plain.decode(activations)) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(),
        "dead_share": (~(activations > 0).any(0)).mean(),
        "loss": loss,
        "loss_reconstructed": reconstructed,
        "loss_zeroed": nothing,
        "loss_recovered": (nothing - reconstructed) / (nothing - loss),
    }


def lab_tokens(lab: Lab, run: str) -> list[list[int]]:
    return [sequence.tokens.tolist() for sequence in sample_sequences(open_run(lab.bucket, run), 10**6)]


def test_the_numbers_are_those_of_a_sequence_at_a_time(lab: Lab) -> None:
    found = values(lab.check("words", "random", 100_000, LiveLimits(tokens_per_slice=100)))
    expected = twin(lab, "words", "random")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


def test_an_encoder_has_no_losses(lab: Lab) -> None:
    found = values(lab.check("bert", "random"))
    assert list(found) == ["tokens", "l0", "fvu", "dead_share"]
    assert found["tokens"] == sum(len(ids) - 2 for ids in lab_tokens(lab, "bert"))


def test_a_run_of_another_configuration_is_not_checked(lab: Lab) -> None:
    lab.capture("neox", "words.jsonl", "other")
    model = lab.folder / "models" / "neox"
    kept = (model / "config.json").read_text()
    change_config(model, layer_norm_eps=0.5)
    with pytest.raises(ActstoreError, match="configuration that model 'neox' does not have any more") as refusal:
        lab.check("other", "random")
    (model / "config.json").write_text(kept)
    assert refusal.value.reason == "MODEL_NOT_FOUND"


def test_a_run_of_other_weights_is_not_checked(lab: Lab) -> None:
    lab.capture("neox", "words.jsonl", "old")
    model = lab.folder / "models" / "neox"
    tensors = load_file(model / "model.safetensors")
    save_file({key: tensor * 1.01 for key, tensor in tensors.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ActstoreError, match="does not have any more") as refusal:
        lab.check("old", "random")
    assert refusal.value.reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize(("tokens", "reason"), [(0, "ARGUMENT_INVALID"), (501, "LIMIT_EXCEEDED")])
def test_tokens_have_a_limit(lab: Lab, tokens: int, reason: str) -> None:
    with pytest.raises(ActstoreError) as refusal:
        lab.check("words", "random", tokens, LiveLimits(check_tokens=500))
    assert (refusal.value.reason, refusal.value.details["value"]) == (reason, str(tokens))


def test_a_run_without_text_yet_is_refused(lab: Lab) -> None:
    create_run(lab.bucket, lab.plan("gpt2", "words.jsonl", "begun", max_tokens=60).record)
    with pytest.raises(ActstoreError) as refusal:
        lab.check("begun", "random")
    assert refusal.value.reason == "NOTHING_LEFT"


@pytest.fixture
def unfinished(lab: Lab, tmp_path: Path) -> Snapshot:
    """Shards 0, 2 and the last, shorter one are committed."""
    plan = lab.plan("gpt2", "words.jsonl", "unfinished", sequences_per_shard=7)
    bucket = open_bucket(str(_made(tmp_path / "store")))
    create_run(bucket, plan.record)
    assert (plan.record.shards_total, plan.record.sequences_total) == (4, 24)
    capture = ShardCapture(load_model(plan.model_source, device=CPU), {}, plan.record)
    for shard in (0, 2, 3):
        capture_shard(capture, bucket, plan, shard, f"attempt{shard}")
    return open_run(bucket, "unfinished")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_sample_is_spread_over_what_is_committed(unfinished: Snapshot) -> None:
    whole = sample_sequences(unfinished, 10**6)
    assert sum(len(sequence.tokens) for sequence in whole) == unfinished.tokens_committed
    assert len(whole) == 7 + 7 + 3
    few = sample_sequences(unfinished, unfinished.tokens_committed * 5 // 17)
    places = [next(n for n, other in enumerate(whole) if np.array_equal(other.tokens, one.tokens)) for one in few]
    assert places == [0, 3, 6, 10, 13]
    assert len(sample_sequences(unfinished, 1)) == 1
    assert not whole[0].kept[0]
    assert whole[0].kept[1:].all()


def test_batches_hold_each_token_once_and_little_padding(unfinished: Snapshot) -> None:
    sample = sample_sequences(unfinished, 10**6)
    sizes = []
    seen: list[int] = []
    for batch in batches(sample, 100, CPU):
        sizes.append(batch.ids.numel())
        seen += batch.ids[batch.inside].tolist()
        assert not batch.kept[~batch.inside].any()
    assert max(sizes) <= 100
    assert sorted(seen) == sorted(token for sequence in sample for token in sequence.tokens.tolist())
