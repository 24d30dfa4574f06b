"""Protobuf messages of questions about a model."""

from collections.abc import Mapping
from typing import Any

from actstore._model_questions import (
    AblateSitesQuestion,
    AttentionQuestion,
    CompareTokensQuestion,
    InductionQuestion,
    ModelQuestion,
    SteerQuestion,
    TextLensQuestion,
    TokeniseQuestion,
    WeightsQuestion,
)
from actstore._transport import messages as _messages
from actstore._transport.feature_messages import Call
from actstore_api.v1 import capture_pb2, model_pb2, norm_pb2, sae_pb2


def _tokenise(question: TokeniseQuestion) -> model_pb2.TokeniseTextRequest:
    return model_pb2.TokeniseTextRequest(
        model=_model(question),
        **_messages.prompt_out(question.text),
        bos=_messages.BOS[question.bos],
        one_token=question.one_token,
    )


def _attention(question: AttentionQuestion) -> model_pb2.GetAttentionRequest:
    return model_pb2.GetAttentionRequest(
        model=_model(question),
        **_messages.prompt_out(question.text),
        bos=_messages.BOS[question.bos],
        layers=question.layers,
        heads=question.heads,
        patterns=question.patterns,
    )


def _induction(question: InductionQuestion) -> model_pb2.GetInductionScoresRequest:
    return model_pb2.GetInductionScoresRequest(
        model=_model(question),
        bos=_messages.BOS[question.bos],
        tokens=question.tokens,
        texts=question.texts,
        seed=question.seed,
        layers=question.layers,
        heads=question.heads,
    )


def _lens(question: TextLensQuestion) -> model_pb2.GetTextLensRequest:
    target: dict[str, Any] = {"target" if isinstance(question.target, str) else "target_token": question.target}
    return model_pb2.GetTextLensRequest(
        model=_model(question),
        **_messages.prompt_out(question.text),
        bos=_messages.BOS[question.bos],
        site=question.site,
        layers=question.layers,
        k=question.k,
        **target,
    )


def _steer(question: SteerQuestion) -> model_pb2.SteerTextRequest:
    mode: Any = model_pb2.SteeringMode.Value(f"STEERING_MODE_{question.mode.upper()}")
    unit: Any = model_pb2.StrengthUnit.Value(f"STRENGTH_UNIT_{question.unit.upper()}")
    positions: Any = model_pb2.SteeredPositions.Value(f"STEERED_POSITIONS_{question.positions.upper()}")
    along: dict[str, Any] = (
        {"feature": model_pb2.FeatureDirection(sae=question.sae, feature=question.feature)}
        if question.sae
        else {"vector": sae_pb2.Vector(elements=question.vector)}
    )
    return model_pb2.SteerTextRequest(
        model=_model(question),
        **_messages.prompt_out(question.prompt, "prompt"),
        bos=_messages.BOS[question.bos],
        site=question.site,
        mode=mode,
        strength=question.strength,
        unit=unit,
        positions=positions,
        tokens=question.tokens,
        temperature=question.temperature,
        seed=question.seed,
        **along,
    )


def _ablate(question: AblateSitesQuestion) -> model_pb2.AblateSitesRequest:
    ablation: Any = model_pb2.SiteAblation.Value(f"SITE_ABLATION_{question.ablation.upper()}")
    return model_pb2.AblateSitesRequest(
        model=_model(question),
        **_messages.prompts_out(question.texts, "texts"),
        bos=_messages.BOS[question.bos],
        sites=question.sites,
        layers=question.layers,
        heads=question.heads,
        ablation=ablation,
        run=question.run,
        run_tokens=question.run_tokens,
        seed=question.seed,
        same_position=question.same_position,
    )


def _compare_tokens(question: CompareTokensQuestion) -> model_pb2.CompareTokensRequest:
    return model_pb2.CompareTokensRequest(
        model=_model(question),
        **_messages.prompt_out(question.clean, "clean", "clean_token_ids"),
        **_messages.prompts_out(question.corrupt, "corrupt", "corrupt_token_ids"),
        bos=_messages.BOS[question.bos],
        layers=question.layers,
        draws=question.draws,
        seed=question.seed,
    )


def _weights(question: WeightsQuestion) -> norm_pb2.GetWeightNormsRequest:
    request = norm_pb2.GetWeightNormsRequest(
        model=_model(question),
        layers=question.layers,
        samples=question.samples,
        seed=question.seed,
        **_messages.prompt_out(question.text),
        bos=_messages.BOS[question.bos],
        run=question.run,
    )
    if question.run:
        request.run_tokens = question.run_tokens
    return request


MODEL_CALLS: Mapping[type[ModelQuestion], Call] = {
    TokeniseQuestion: Call("ModelService", "TokeniseText", _tokenise, "tokens"),
    AttentionQuestion: Call(
        "ModelService", "GetAttention", _attention, "heads", tokens="tokens", more_tables=("patterns",)
    ),
    InductionQuestion: Call(
        "ModelService", "GetInductionScores", _induction, "heads", facts=("tokens", "loss_first", "loss_second")
    ),
    TextLensQuestion: Call("ModelService", "GetTextLens", _lens, "positions", tokens="tokens", more_tables=("tops",)),
    SteerQuestion: Call(
        "ModelService",
        "SteerText",
        _steer,
        "tokens",
        tokens="prompt",
        facts=("steered_text", "unsteered_text", "site", "mean_norm", "strength"),
    ),
    CompareTokensQuestion: Call("ModelService", "CompareTokens", _compare_tokens, "tokens", more_tables=("heads",)),
    WeightsQuestion: Call("NormService", "GetWeightNorms", _weights, "weights", more_tables=("sublayers",)),
    AblateSitesQuestion: Call(
        "ModelService", "AblateSites", _ablate, "effects", more_tables=("texts",), facts=("loss", "tokens")
    ),
}


def _model(question: ModelQuestion) -> capture_pb2.ModelReference:
    return capture_pb2.ModelReference(name=question.model, revision=question.revision)
