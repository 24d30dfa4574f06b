"""Live questions to a model and to an SAE, as callers of the gateway meet them."""

import shutil
from pathlib import Path

import grpc
import pytest

from actstore import Lab
from actstore._canary import check
from actstore_api.v1 import common_pb2, model_pb2, sae_pb2
from tests.canary.slow import TEXTS
from tests.made_models.random_models import save_model
from tests.topology.caller import (
    PROMPT,
    TINY,
    TINY_SAE,
    Caller,
    failure,
    prompt,
    snapshot,
    specification,
    table,
)

pytestmark = pytest.mark.stack


def test_questions_to_an_sae_are_answered_by_a_replica(caller: Caller) -> None:
    """Each verb once, and what one answer says of another's; the numbers have tests of their own."""
    ask, saes = caller.with_token, caller.saes
    encoded = saes.EncodeText(sae_pb2.EncodeTextRequest(**TINY_SAE, text=prompt(PROMPT)), **ask)
    tokens, found = table(encoded.tokens).to_pandas(), table(encoded.activations).to_pandas()
    assert tokens.text.tolist() == ["<bos>", *PROMPT.split()]
    strongest = found[found.position > 0].sort_values("activation").iloc[-1]
    feature, position = int(strongest.feature), int(strongest.position)
    ablated = saes.AblateText(
        sae_pb2.AblateTextRequest(**TINY_SAE, feature=feature, text=prompt(PROMPT), pairs=True), **ask
    )
    assert (ablated.position, ablated.activation) == (position, pytest.approx(strongest.activation))
    assert table(ablated.effects).num_rows == (position + 1) * (position + 2) // 2
    direction = saes.AblateDirection(
        sae_pb2.AblateDirectionRequest(**TINY_SAE, feature=feature, text=prompt(PROMPT)), **ask
    )
    assert table(direction.tokens)["next_text"].to_pylist() == PROMPT.split()
    lens = saes.GetLogitLens(sae_pb2.GetLogitLensRequest(**TINY_SAE, features=[feature], k=3), **ask)
    assert table(lens.tokens)["end"].to_pylist() == ["top"] * 3 + ["bottom"] * 3
    near = saes.FindNeighbors(sae_pb2.FindNeighborsRequest(sae="small-sae", feature=feature), **ask)
    assert table(near.features).num_rows == 20
    for answer in (encoded, ablated, direction, lens):
        assert (answer.provenance.model, list(answer.provenance.sae_sha256)) == ("tiny", ["small-sae"])
    assert near.provenance.sae_sha256 == encoded.provenance.sae_sha256


def test_an_sae_is_checked_on_a_runs_own_text_and_model(caller: Caller, folder: Path) -> None:
    run = caller.start(specification("whole", dense_sites=["resid_post.1"], sequences_per_shard=100))
    list(caller.watch(run))
    request = sae_pb2.CheckSaeRequest(run=run, sae="small-sae", tokens=500)
    answer = caller.saes.CheckSae(request, **caller.with_token)
    quantities = {row["quantity"]: row["value"] for row in table(answer.quantities).to_pylist()}
    assert 300 < quantities["tokens"] < 700
    assert quantities["fvu"] > 1  # it is random
    assert any("explains nothing" in warning for warning in answer.warnings)
    assert any("trained on model 'small'" in warning for warning in answer.warnings)
    assert (answer.provenance.run, answer.provenance.snapshot) == ("whole", snapshot(folder, run).name)


def test_questions_to_a_model_are_answered_by_a_replica(caller: Caller) -> None:
    """Each verb once; the numbers have tests of their own."""
    ask, models, tiny = caller.with_token, caller.models, TINY
    seen = models.GetAttention(model_pb2.GetAttentionRequest(model=tiny, text=prompt(PROMPT), patterns=True), **ask)
    assert table(seen.tokens)["text"].to_pylist() == ["<bos>", *PROMPT.split()]
    assert table(seen.patterns).num_rows == 15 * table(seen.heads).num_rows
    assert seen.provenance.attention_implementation == "eager"
    alone = models.GetAttention(model_pb2.GetAttentionRequest(model=tiny, text=prompt(PROMPT)), **ask)
    assert not alone.HasField("patterns")
    scores = models.GetInductionScores(model_pb2.GetInductionScoresRequest(model=tiny, tokens=5), **ask)
    assert (scores.tokens, table(scores.heads).num_rows) == (5, table(seen.heads).num_rows)
    lens = models.GetTextLens(model_pb2.GetTextLensRequest(model=tiny, text=prompt(PROMPT), k=2), **ask)
    layers = len(set(table(seen.heads)["layer"].to_pylist()))
    assert (table(lens.tops).num_rows, table(lens.positions).num_rows) == (10 * layers, 5 * layers)
    along = common_pb2.SaeFeature(sae="small-sae", feature=3)
    steered = models.SteerText(
        model_pb2.SteerTextRequest(model=tiny, prompt=prompt(PROMPT), feature=along, strength=0.0, max_new_tokens=3),
        **ask,
    )
    assert steered.steered_text == steered.unsteered_text
    assert (steered.site, list(steered.provenance.sae_sha256)) == ("resid_post.1", ["small-sae"])
    ablated = models.AblateSites(
        model_pb2.AblateSitesRequest(model=tiny, texts=[prompt(PROMPT)], sites=["mlp_out"]), **ask
    )
    assert (ablated.tokens, table(ablated.effects).num_rows) == (3, layers)


def test_a_replica_reads_a_model_again_whose_files_were_written_again(caller: Caller, folder: Path) -> None:
    """For questions and sweeps, under the one name that Serve has it by."""
    named = common_pb2.ModelReference(name="rewritten")
    lens, seen = model_pb2.GetTextLensRequest(model=named, text=prompt(PROMPT)), []
    for kind in ("neox", "gpt2"):
        save_model(folder / "models" / "rewritten", kind)
        answer = caller.models.GetTextLens(lens, **caller.with_token)
        *_, end = caller.sweep(model=named, sites=["resid_pre"])
        assert end.result.provenance.weights_sha256 == answer.provenance.weights_sha256
        seen.append((answer.provenance.weights_sha256, table(answer.tops)))
    (one, before), (other, after) = seen
    assert one != other
    assert not before.equals(after)


@pytest.mark.parametrize(
    ("verb", "request_", "reason", "field"),
    [
        ("GetAttention", model_pb2.GetAttentionRequest(text=prompt("a")), "ARGUMENT_INVALID", "model"),
        ("GetTextLens", model_pb2.GetTextLensRequest(model=TINY, text=prompt("a"), site="z"), "SITE_UNKNOWN", "site"),
        ("SteerText", model_pb2.SteerTextRequest(model=TINY, prompt=prompt("a")), "ARGUMENT_INVALID", "direction"),
        (
            "SteerText",
            model_pb2.SteerTextRequest(
                model=TINY, prompt=prompt("a"), site="resid_post.0", feature=common_pb2.SaeFeature(sae="small-sae")
            ),
            "ARGUMENT_INVALID",
            "site",
        ),
        (
            "SteerText",
            model_pb2.SteerTextRequest(model=TINY, prompt=prompt("a"), vector=common_pb2.Vector(elements=[1.0])),
            "ARGUMENT_INVALID",
            "site",
        ),
        (
            "AblateSites",
            model_pb2.AblateSitesRequest(model=TINY, texts=[prompt("a b")], ablation=9),
            "ARGUMENT_INVALID",
            "ablation",
        ),
    ],
)
def test_a_refused_question_to_a_model_says_why(
    caller: Caller, verb: str, request_: object, reason: str, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        getattr(caller.models, verb)(request_, **caller.with_token)
    found = failure(refusal.value)
    assert (found.reason, found.details["field"]) == (reason, field)


@pytest.mark.parametrize(
    ("verb", "request_", "code", "reason", "field"),
    [
        (
            "EncodeText",
            sae_pb2.EncodeTextRequest(**TINY_SAE, text=prompt("a " * 32)),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "LIMIT_EXCEEDED",
            "text",
        ),
        (
            "EncodeText",
            sae_pb2.EncodeTextRequest(sae="small-sae", text=prompt("a")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "ARGUMENT_INVALID",
            "model",
        ),
        (
            "AblateText",
            sae_pb2.AblateTextRequest(**TINY_SAE, feature=32, text=prompt("a b")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "FEATURE_OUT_OF_RANGE",
            "feature",
        ),
        (
            "AblateText",
            sae_pb2.AblateTextRequest(**TINY_SAE, text=prompt("a b"), ablation=9),
            grpc.StatusCode.INVALID_ARGUMENT,
            "ARGUMENT_INVALID",
            "ablation",
        ),
        (
            "GetLogitLens",
            sae_pb2.GetLogitLensRequest(**TINY_SAE, features=[1], side=9),
            grpc.StatusCode.INVALID_ARGUMENT,
            "ARGUMENT_INVALID",
            "side",
        ),
        (
            "FindNeighbors",
            sae_pb2.FindNeighborsRequest(sae="small-sae"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "ARGUMENT_INVALID",
            "direction",
        ),
        (
            "FindNeighbors",
            sae_pb2.FindNeighborsRequest(sae="absent", feature=1),
            grpc.StatusCode.NOT_FOUND,
            "SAE_NOT_FOUND",
            "sae",
        ),
        (
            "CheckSae",
            sae_pb2.CheckSaeRequest(run="absent", sae="small-sae"),
            grpc.StatusCode.NOT_FOUND,
            "RUN_NOT_FOUND",
            "run",
        ),
    ],
)
def test_a_refused_question_says_why(
    caller: Caller, verb: str, request_: object, code: grpc.StatusCode, reason: str, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        getattr(caller.saes, verb)(request_, **caller.with_token)
    assert refusal.value.code() == code
    found = failure(refusal.value)
    assert (found.reason, found.details["field"]) == (reason, field)


def test_the_canary_gets_the_golden_numbers(lab: Lab, folder: Path) -> None:
    """A capture, examples, norms and a sweep both ways."""
    shutil.copy(TEXTS, folder / "data")
    verdict = check.canary(lab)
    assert verdict.right, verdict.wrong
