"""The lens on a text against transformers' own modules, one layer at a time in float64 softmaxes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actstore_api.records.model import GetTextLens
from actstore_api.records.terms import ModelReference
from actstore_storage.errors import ActstoreError
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.texts import lens_of_text as text_lens
from tests.made_models.plain_model import PlainModel
from tests.made_models.small_models import LAYERS, SAVERS, VOCABULARY_SIZE
from tests.worker.live.asking import GPT2, Replica

TEXT = "the cat"
LIMITS = LiveLimits()
NORMS = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm", "opt": "model.decoder.final_layer_norm"}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    return Replica(tmp_path_factory.mktemp("lens"), LIMITS)


def plain_logs(replica: Replica, name: str, kind: str, layer: int, ids: list[int]) -> torch.Tensor:
    """[position, vocabulary]: log-probabilities, and the logits they are of."""
    module: Any = replica.model(name).module
    residual = torch.from_numpy(PlainModel(module).at(kind, layer, ids))
    with torch.no_grad():
        normed = module.get_submodule(NORMS.get(module.config.model_type, "model.norm"))(residual)
        logits = module.get_output_embeddings()(normed).double()
    if cap := getattr(module.config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return torch.stack([logits.log_softmax(-1), logits])


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "resid_post"])
@pytest.mark.parametrize("name", SAVERS)
def test_each_layer_is_normed_and_unembedded_as_the_last_is(replica: Replica, name: str, kind: str) -> None:
    if kind not in replica.model(name).kinds or (name, kind) == ("opt", "resid_mid"):
        pytest.skip("a parallel block has none, and of OPT's the plain model knows nothing")
    answer = replica.ask(GetTextLens(ModelReference(name), TEXT, site=kind, k=3))
    ids = replica.ids(name, TEXT)
    output = torch.from_numpy(PlainModel(replica.model(name).module).logits(ids)).log_softmax(-1)
    tops, places = answer.tops.to_pandas(), answer.positions.to_pandas()
    assert tops.shape[0] == LAYERS * len(ids) * 3
    for layer in range(LAYERS):
        logs, logits = plain_logs(replica, name, kind, layer, ids)
        here = tops[tops.layer == layer]
        order = logits.argsort(-1, descending=True)[:, :3]
        assert here["rank"].tolist() == [1, 2, 3] * len(ids)
        # BOS has no embedding in some families, and then all its logits are alike: any token may come first.
        found = torch.tensor(here.token.tolist()).view(len(ids), 3)
        torch.testing.assert_close(logits.gather(-1, found), logits.gather(-1, order), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(here.logit, logits.gather(-1, order).flatten(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(here.probability, logs.gather(-1, order).exp().flatten(), rtol=1e-4, atol=1e-6)
        row = places[places.layer == layer]
        following = torch.tensor(ids[1:])[:, None]
        np.testing.assert_allclose(row.target_log_probability[:-1], logs[:-1].gather(-1, following)[:, 0], atol=1e-4)
        ranks = 1 + (logits[:-1] > logits[:-1].gather(-1, following)).sum(-1)
        assert row.target_rank[:-1].tolist() == ranks.tolist()
        np.testing.assert_allclose(row.entropy, -(logs.exp() * logs).sum(-1), rtol=1e-4, atol=1e-4)
        kl = torch.nn.functional.kl_div(logs, output, reduction="none", log_target=True).sum(-1)
        np.testing.assert_allclose(row.kl, kl, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SAVERS)
def test_the_last_layer_is_the_models_output(replica: Replica, name: str) -> None:
    answer = replica.ask(GetTextLens(ModelReference(name), TEXT, layers=(LAYERS - 1,), k=VOCABULARY_SIZE))
    ids = replica.ids(name, TEXT)
    found = np.zeros((len(ids), VOCABULARY_SIZE))
    rows = answer.tops.to_pydict()
    found[rows["position"], rows["token"]] = rows["logit"]
    np.testing.assert_allclose(found, PlainModel(replica.model(name).module).logits(ids), rtol=1e-4, atol=1e-4)
    assert answer.positions["kl"].to_pylist() == [0.0] * len(ids)


def test_the_last_position_has_no_next_token_but_may_have_a_named_one(replica: Replica) -> None:
    answer = replica.ask(GetTextLens(GPT2, TEXT))
    assert answer.positions["target_text"].to_pylist() == [*TEXT, None] * LAYERS
    following = answer.positions.to_pandas()
    assert following[following.position == len(TEXT)].target_rank.isna().all()
    named = replica.ask(GetTextLens(GPT2, TEXT, target="c")).positions.to_pandas()
    assert set(named.target_text) == {"c"}
    spots = [place for place, letter in enumerate(TEXT) if letter == "c"]  # the position before it, after a BOS
    for name in ("target_rank", "target_log_probability", "entropy", "kl"):
        assert (
            named[named.position.isin(spots)][name].tolist() == following[following.position.isin(spots)][name].tolist()
        )
    assert named.target_rank.notna().all()


def test_slices_of_positions_are_the_whole(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = replica.ask(GetTextLens(ModelReference("llama"), TEXT))
    monkeypatch.setattr(text_lens, "LOGITS_MAX", 3 * VOCABULARY_SIZE)
    sliced = replica.ask(GetTextLens(ModelReference("llama"), TEXT))
    assert sliced.tops["token"] == whole.tops["token"]
    np.testing.assert_allclose(sliced.positions["kl"], whole.positions["kl"], atol=1e-5)


@pytest.mark.parametrize(
    ("question", "reason", "field", "value", "allowed"),
    [
        (GetTextLens(ModelReference("bert"), TEXT), "MODEL_UNSUPPORTED", "model", "bert", "a causal language model"),
        (GetTextLens(GPT2, ""), "ARGUMENT_INVALID", "text", "", "text of at least one token"),
        (GetTextLens(GPT2, "x" * 32), "LIMIT_EXCEEDED", "text", "33 tokens", "at most 32 tokens"),
        (GetTextLens(GPT2, TEXT, layers=(3,)), "LAYER_OUT_OF_RANGE", "layers", "3", "0..2"),
        (GetTextLens(GPT2, TEXT, site="z"), "SITE_UNKNOWN", "site", "z", "resid_pre, resid_mid, resid_post"),
        (
            GetTextLens(ModelReference("neox_parallel"), TEXT, site="resid_mid"),
            "SITE_UNKNOWN",
            "site",
            "resid_mid",
            None,
        ),
        (GetTextLens(GPT2, TEXT, k=0), "ARGUMENT_INVALID", "k", "0", "1 to 50"),
        (GetTextLens(GPT2, TEXT, k=51), "LIMIT_EXCEEDED", "k", "51", "1 to 50"),
        (GetTextLens(GPT2, "x" * 20, k=10), "LIMIT_EXCEEDED", "k", "630 rows", "at most 500 rows"),
        (GetTextLens(GPT2, TEXT, target="ab"), "ANSWER_NOT_ONE_TOKEN", "target", "ab", "text of one token"),
    ],
)
def test_refusals(
    replica: Replica, question: GetTextLens, reason: str, field: str, value: str, allowed: str | None
) -> None:
    with pytest.raises(ActstoreError) as refusal:
        replica.ask(question, replace(LIMITS, lens_tokens=50, lens_rows=500))
    details = refusal.value.details
    assert (refusal.value.reason, details["field"], details["value"]) == (reason, field, value)
    assert allowed is None or details["allowed"] == allowed
    assert ("attention and MLP both read resid_pre" in refusal.value.message) == (value == "resid_mid")
