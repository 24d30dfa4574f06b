"""Protobuf messages of questions about features, and of what is found."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from actstore._questions import (
    AblateDirectionQuestion,
    AblateTextQuestion,
    ActiveQuestion,
    CheckQuestion,
    CofiringQuestion,
    EncodeQuestion,
    FeatureQuestion,
    FindQuestion,
    Found,
    LensQuestion,
    NeighboursQuestion,
    RowsQuestion,
    SaeQuestion,
    SampleQuestion,
)
from actstore._records import RowQuery
from actstore._transport import messages as _messages
from actstore_api.v1 import activation_pb2, capture_pb2, feature_pb2, sae_pb2


@dataclass(frozen=True)
class Call:
    """Which verb of which service, its request, and what its answer says. `table` and `tokens` are fields of it."""

    service: str
    verb: str
    request: Callable[[Any], Any]
    table: str
    tokens: str = ""
    facts: tuple[str, ...] = ()
    # Those that an answer may lack.
    more_tables: tuple[str, ...] = ()

    def found(self, answer: Any) -> Found:
        excluded = _messages.origin_of(answer)["excluded"] if hasattr(answer, "excluded") else ()
        return Found(
            table=_messages.table_of(getattr(answer, self.table)),
            provenance=_messages.provenance_of(answer.provenance),
            excluded=excluded,
            tokens=_messages.table_of(getattr(answer, self.tokens)) if self.tokens else pa.table({}),
            facts={name: _fact(answer, name) for name in self.facts},
            tables={
                name: _messages.table_of(getattr(answer, name)) for name in self.more_tables if answer.HasField(name)
            },
            warnings=tuple(getattr(answer, "warnings", ())),
        )


def _fact(answer: Any, name: str) -> Any:
    """None for an optional number that is not there, for 0 would be one."""
    absent = answer.DESCRIPTOR.fields_by_name[name].has_presence and not answer.HasField(name)
    return None if absent else getattr(answer, name)


def rows_request(question: RowsQuestion) -> feature_pb2.ReadFeatureRequest:
    return feature_pb2.ReadFeatureRequest(
        feature=_reference(question, question.feature), threshold=question.threshold, **_which_tokens(question)
    )


def _sample(question: SampleQuestion) -> feature_pb2.SampleExamplesRequest:
    method: Any = feature_pb2.SampleMethod.Value(f"SAMPLE_METHOD_{question.method.upper()}")
    return feature_pb2.SampleExamplesRequest(
        run=question.run,
        sae=question.sae,
        features=question.features,
        method=method,
        k=question.k,
        bins=question.bins,
        threshold=question.threshold,
        seed=question.seed,
        tokens_before=question.tokens_before,
        tokens_after=question.tokens_after,
        **_which_tokens(question),
    )


def _find(question: FindQuestion) -> feature_pb2.FindFeaturesRequest:
    return feature_pb2.FindFeaturesRequest(
        run=question.run,
        sae=question.sae,
        bounds=[
            feature_pb2.StatisticBound(statistic=name, low=low, high=high)
            for name, (low, high) in question.bounds.items()
        ],
        order=question.order,
        ascending=question.ascending,
        k=question.k,
        features=question.features,
        with_token_r2=question.with_token_r2,
        exclude=_messages.exclusion_of(question.exclude),
    )


def _active(question: ActiveQuestion) -> feature_pb2.GetActiveFeaturesRequest:
    return feature_pb2.GetActiveFeaturesRequest(
        run=question.run, sae=question.sae, k=question.k, order=question.order, **_which_tokens(question)
    )


def _cofiring(question: CofiringQuestion) -> feature_pb2.GetCofiringFeaturesRequest:
    return feature_pb2.GetCofiringFeaturesRequest(
        feature=_reference(question, question.feature),
        k=question.k,
        least_tokens=question.least_tokens,
        exclude=_messages.exclusion_of(question.exclude),
    )


def _encode(question: EncodeQuestion) -> sae_pb2.EncodeTextRequest:
    text = _messages.prompt_out(question.text)
    return sae_pb2.EncodeTextRequest(sae=_sae(question), **text, bos=_messages.BOS[question.bos])


def _lens(question: LensQuestion) -> sae_pb2.GetLogitLensRequest:
    return sae_pb2.GetLogitLensRequest(
        sae=_sae(question),
        features=question.features,
        side=_side(question.side),
        fold_norm=question.fold_norm,
        longest_unembedding=question.longest_unembedding,
        k=question.k,
    )


def _ablate_text(question: AblateTextQuestion) -> sae_pb2.AblateTextRequest:
    ablation: Any = sae_pb2.TextAblation.Value(f"TEXT_ABLATION_{question.ablation.upper()}")
    return sae_pb2.AblateTextRequest(
        sae=_sae(question),
        feature=question.feature,
        **_messages.prompt_out(question.text),
        position=question.position,
        ablation=ablation,
        pairs=question.pairs,
        first_ablated=question.first,
        bos=_messages.BOS[question.bos],
    )


def _ablate_direction(question: AblateDirectionQuestion) -> sae_pb2.AblateDirectionRequest:
    text = _messages.prompt_out(question.text)
    return sae_pb2.AblateDirectionRequest(
        sae=_sae(question), feature=question.feature, **text, bos=_messages.BOS[question.bos]
    )


def _neighbours(question: NeighboursQuestion) -> sae_pb2.FindNeighboursRequest:
    request = sae_pb2.FindNeighboursRequest(sae=question.sae, side=_side(question.side), k=question.k)
    if question.feature is None:
        request.vector.CopyFrom(sae_pb2.Vector(elements=question.vector))
    else:
        request.feature = question.feature
    return request


def _check(question: CheckQuestion) -> sae_pb2.CheckSaeRequest:
    return sae_pb2.CheckSaeRequest(run=question.run, sae=question.sae, tokens=question.tokens)


CALLS: Mapping[type[FeatureQuestion | SaeQuestion], Call] = {
    SampleQuestion: Call("FeatureService", "SampleExamples", _sample, "examples"),
    FindQuestion: Call("FeatureService", "FindFeatures", _find, "features"),
    ActiveQuestion: Call("FeatureService", "GetActiveFeatures", _active, "features"),
    CofiringQuestion: Call("FeatureService", "GetCofiringFeatures", _cofiring, "features"),
    EncodeQuestion: Call("SaeService", "EncodeText", _encode, "activations", tokens="tokens"),
    LensQuestion: Call("SaeService", "GetLogitLens", _lens, "tokens", facts=("masked_tokens",)),
    AblateTextQuestion: Call(
        "SaeService", "AblateText", _ablate_text, "effects", tokens="tokens", facts=("position", "activation")
    ),
    AblateDirectionQuestion: Call("SaeService", "AblateDirection", _ablate_direction, "tokens"),
    NeighboursQuestion: Call("SaeService", "FindNeighbours", _neighbours, "features"),
    CheckQuestion: Call("SaeService", "CheckSae", _check, "quantities"),
}


def _reference(question: FeatureQuestion, feature: int) -> feature_pb2.FeatureReference:
    return feature_pb2.FeatureReference(run=question.run, sae=question.sae, feature=feature)


def _sae(question: SaeQuestion) -> sae_pb2.SaeReference:
    model = capture_pb2.ModelReference(name=question.model, revision=question.revision)
    return sae_pb2.SaeReference(model=model, sae=question.sae)


def _side(side: str) -> Any:
    return sae_pb2.FeatureSide.Value(f"FEATURE_SIDE_{side.upper()}")


def _which_tokens(question: FeatureQuestion) -> dict[str, Any]:
    found: dict[str, Any] = {"exclude": _messages.exclusion_of(question.exclude)}
    if question.where is not None:
        found["selection"] = _selection(question.where)
    return found


def _selection(where: RowQuery) -> feature_pb2.TokenSelection:
    return feature_pb2.TokenSelection(
        filter=activation_pb2.TokenFilter(
            tokens=where.tokens,
            documents=where.documents,
            first_position=where.first_position,
            end_position=where.end_position,
        ),
        first_sequence=where.first_sequence,
        sequence_count=where.sequence_count,
    )
