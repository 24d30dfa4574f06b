"""Between proto ModelService and the workers' questions and answers: one row a verb, for the gateway."""

from collections.abc import Mapping
from typing import Any

from actstore_api.v1 import capture_pb2, model_pb2, norm_pb2
from actstore_storage.errors import BadRequest
from actstore_worker.live.model_questions import (
    ABSOLUTE,
    ADD,
    ALL,
    GENERATED,
    MEAN,
    MEAN_NORM,
    PROJECT_OUT,
    PROMPT,
    RESAMPLE,
    SET,
    ZERO,
    AblateSites,
    CompareTokens,
    LensText,
    MeasureWeights,
    ScoreInduction,
    SeeAttention,
    SteerText,
    TokeniseText,
)
from actstore_worker.wire.capture import answer_of, given, prepend_bos, prompt_of, prompts_of, required
from actstore_worker.wire.sae_questions import Verb, known, where_given

_MODES: Mapping[int, str] = {
    model_pb2.STEERING_MODE_UNSPECIFIED: ADD,
    model_pb2.STEERING_MODE_ADD: ADD,
    model_pb2.STEERING_MODE_SET: SET,
    model_pb2.STEERING_MODE_PROJECT_OUT: PROJECT_OUT,
}
_UNITS: Mapping[int, str] = {
    model_pb2.STRENGTH_UNIT_UNSPECIFIED: MEAN_NORM,
    model_pb2.STRENGTH_UNIT_MEAN_NORM: MEAN_NORM,
    model_pb2.STRENGTH_UNIT_ABSOLUTE: ABSOLUTE,
}
_POSITIONS: Mapping[int, str] = {
    model_pb2.STEERED_POSITIONS_UNSPECIFIED: ALL,
    model_pb2.STEERED_POSITIONS_ALL: ALL,
    model_pb2.STEERED_POSITIONS_PROMPT: PROMPT,
    model_pb2.STEERED_POSITIONS_GENERATED: GENERATED,
}
_ABLATIONS: Mapping[int, str] = {
    model_pb2.SITE_ABLATION_UNSPECIFIED: ZERO,
    model_pb2.SITE_ABLATION_ZERO: ZERO,
    model_pb2.SITE_ABLATION_MEAN: MEAN,
    model_pb2.SITE_ABLATION_RESAMPLE: RESAMPLE,
}


def _tokenise(message: model_pb2.TokeniseTextRequest) -> TokeniseText:
    return TokeniseText(
        **_model(message.model),
        text=prompt_of(message),
        one_token=message.one_token,
        prepend_bos=prepend_bos(message.bos),
    )


def _attention(message: model_pb2.GetAttentionRequest) -> SeeAttention:
    return SeeAttention(
        **_model(message.model),
        text=prompt_of(message),
        layers=tuple(message.layers),
        heads=tuple(message.heads),
        patterns=message.patterns,
        prepend_bos=prepend_bos(message.bos),
    )


def _induction(message: model_pb2.GetInductionScoresRequest) -> ScoreInduction:
    return ScoreInduction(
        **_model(message.model),
        tokens=given(message, "tokens"),
        seed=message.seed,
        layers=tuple(message.layers),
        heads=tuple(message.heads),
        prepend_bos=prepend_bos(message.bos),
        **where_given(message, "texts"),
    )


def _lens(message: model_pb2.GetTextLensRequest) -> LensText:
    return LensText(
        **_model(message.model),
        text=prompt_of(message),
        layers=tuple(message.layers),
        target=answer_of(message, "target", "target_token"),
        prepend_bos=prepend_bos(message.bos),
        site=message.site or LensText.site,
        **where_given(message, "k"),
    )


def _steer(message: model_pb2.SteerTextRequest) -> SteerText:
    direction = message.WhichOneof("direction")
    if direction is None:
        raise BadRequest("neither vector nor feature is given", field="direction", allowed="vector or feature")
    if direction == "feature":
        if message.site:
            why = "none: a feature has its SAE's site"
            raise BadRequest(
                f"site {message.site!r} is given with a feature", field="site", value=message.site, allowed=why
            )
        where: dict[str, Any] = {
            "sae": required(message.feature.sae, "sae"),
            "feature": message.feature.feature,
        }
    else:
        where = {"vector": tuple(message.vector.elements), "site": required(message.site, "site")}
    return SteerText(
        **_model(message.model),
        prompt=prompt_of(message, "prompt"),
        **where,
        mode=known(_MODES, message.mode, "mode"),
        strength=given(message, "strength"),
        unit=known(_UNITS, message.unit, "unit"),
        positions=known(_POSITIONS, message.positions, "positions"),
        temperature=message.temperature,
        seed=message.seed,
        prepend_bos=prepend_bos(message.bos),
        **where_given(message, "tokens"),
    )


def _ablate(message: model_pb2.AblateSitesRequest) -> AblateSites:
    return AblateSites(
        **_model(message.model),
        texts=prompts_of(message, "texts"),
        sites=tuple(message.sites),
        layers=tuple(message.layers),
        heads=tuple(message.heads),
        ablation=known(_ABLATIONS, message.ablation, "ablation"),
        run=message.run,
        seed=message.seed,
        same_position=message.same_position,
        prepend_bos=prepend_bos(message.bos),
        **where_given(message, "run_tokens"),
    )


def _compare_tokens(message: model_pb2.CompareTokensRequest) -> CompareTokens:
    return CompareTokens(
        **_model(message.model),
        clean=prompt_of(message, "clean", "clean_token_ids"),
        corrupt=prompts_of(message, "corrupt", "corrupt_token_ids"),
        layers=tuple(message.layers),
        draws=given(message, "draws"),
        seed=message.seed,
        prepend_bos=prepend_bos(message.bos),
    )


def _weights(message: norm_pb2.GetWeightNormsRequest) -> MeasureWeights:
    return MeasureWeights(
        **_model(message.model),
        layers=tuple(message.layers),
        seed=message.seed,
        text=prompt_of(message),
        prepend_bos=prepend_bos(message.bos),
        run=message.run,
        **where_given(message, "samples"),
        **where_given(message, "run_tokens"),
    )


TOKENISE_TEXT = Verb(_tokenise, model_pb2.TokeniseTextResponse)
GET_ATTENTION = Verb(_attention, model_pb2.GetAttentionResponse)
GET_INDUCTION_SCORES = Verb(_induction, model_pb2.GetInductionScoresResponse)
GET_TEXT_LENS = Verb(_lens, model_pb2.GetTextLensResponse)
STEER_TEXT = Verb(_steer, model_pb2.SteerTextResponse)
ABLATE_SITES = Verb(_ablate, model_pb2.AblateSitesResponse)
COMPARE_TOKENS = Verb(_compare_tokens, model_pb2.CompareTokensResponse)
GET_WEIGHT_NORMS = Verb(_weights, norm_pb2.GetWeightNormsResponse)


def _model(message: capture_pb2.ModelReference) -> dict[str, Any]:
    return {"model": required(message.name, "model"), "revision": message.revision}
