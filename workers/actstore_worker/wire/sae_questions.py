"""Between proto SaeService and the workers' questions and answers: one row a verb, for the gateway."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import pyarrow as pa

from actstore_api.v1 import sae_pb2
from actstore_storage.errors import BadRequest
from actstore_storage.runs.snapshot import Provenance
from actstore_worker.live.questions import (
    DELETE,
    MEAN_RESIDUAL,
    ZERO_EMBEDDING,
    ZERO_RESIDUAL,
    AblateDirection,
    AblateText,
    Answer,
    CheckSae,
    EncodeText,
    FindNeighbours,
    LogitLens,
    Question,
)
from actstore_worker.wire.capture import given, prepend_bos, prompt_of, provenance_message, required, table_message

_SIDES: Mapping[int, str] = {
    sae_pb2.FEATURE_SIDE_UNSPECIFIED: "decoder",
    sae_pb2.FEATURE_SIDE_DECODER: "decoder",
    sae_pb2.FEATURE_SIDE_ENCODER: "encoder",
}
_ABLATIONS: Mapping[int, str] = {
    sae_pb2.TEXT_ABLATION_UNSPECIFIED: DELETE,
    sae_pb2.TEXT_ABLATION_DELETE: DELETE,
    sae_pb2.TEXT_ABLATION_ZERO_EMBEDDING: ZERO_EMBEDDING,
    sae_pb2.TEXT_ABLATION_ZERO_RESIDUAL: ZERO_RESIDUAL,
    sae_pb2.TEXT_ABLATION_MEAN_RESIDUAL: MEAN_RESIDUAL,
}


Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(frozen=True)
class Verb(Generic[Request, Response]):
    """`question` refuses, with BadRequest, what is absent and enum values that this version does not know."""

    question: Callable[[Request], Question]
    response: Callable[..., Response]

    def message(self, answer: Answer) -> Response:
        """The answer's fields are those of its message, by name."""
        return self.response(**{item.name: _value(getattr(answer, item.name)) for item in fields(answer)})


def _encode_text(message: sae_pb2.EncodeTextRequest) -> EncodeText:
    return EncodeText(**_reference(message.sae), text=prompt_of(message), prepend_bos=prepend_bos(message.bos))


def _logit_lens(message: sae_pb2.GetLogitLensRequest) -> LogitLens:
    return LogitLens(
        **_reference(message.sae),
        features=tuple(message.features),
        side=known(_SIDES, message.side, "side"),
        fold_norm=message.fold_norm,
        longest_unembedding=given(message, "longest_unembedding"),
        **where_given(message, "k"),
    )


def _ablate_text(message: sae_pb2.AblateTextRequest) -> AblateText:
    return AblateText(
        **_reference(message.sae),
        feature=message.feature,
        text=prompt_of(message),
        position=given(message, "position"),
        ablation=known(_ABLATIONS, message.ablation, "ablation"),
        pairs=message.pairs,
        first_ablated=message.first_ablated,
        prepend_bos=prepend_bos(message.bos),
    )


def _ablate_direction(message: sae_pb2.AblateDirectionRequest) -> AblateDirection:
    return AblateDirection(
        **_reference(message.sae),
        feature=message.feature,
        text=prompt_of(message),
        prepend_bos=prepend_bos(message.bos),
    )


def _find_neighbours(message: sae_pb2.FindNeighboursRequest) -> FindNeighbours:
    direction = message.WhichOneof("direction")
    if direction is None:
        raise BadRequest("neither feature nor vector is given", field="direction", allowed="feature or vector")
    return FindNeighbours(
        sae=required(message.sae, "sae"),
        feature=message.feature if direction == "feature" else None,
        vector=tuple(message.vector.elements),
        side=known(_SIDES, message.side, "side"),
        **where_given(message, "k"),
    )


def _check_sae(message: sae_pb2.CheckSaeRequest) -> CheckSae:
    return CheckSae(
        run=required(message.run, "run"), sae=required(message.sae, "sae"), **where_given(message, "tokens")
    )


ENCODE_TEXT = Verb(_encode_text, sae_pb2.EncodeTextResponse)
GET_LOGIT_LENS = Verb(_logit_lens, sae_pb2.GetLogitLensResponse)
ABLATE_TEXT = Verb(_ablate_text, sae_pb2.AblateTextResponse)
ABLATE_DIRECTION = Verb(_ablate_direction, sae_pb2.AblateDirectionResponse)
FIND_NEIGHBOURS = Verb(_find_neighbours, sae_pb2.FindNeighboursResponse)
CHECK_SAE = Verb(_check_sae, sae_pb2.CheckSaeResponse)


def _reference(message: sae_pb2.SaeReference) -> dict[str, Any]:
    return {
        "model": required(message.model.name, "model"),
        "revision": message.model.revision,
        "sae": required(message.sae, "sae"),
    }


def where_given(message: Any, name: str) -> dict[str, Any]:
    """Where it is not, the question's own default counts."""
    return {name: getattr(message, name)} if message.HasField(name) else {}


def known(names: Mapping[int, str], value: int, field: str) -> str:
    if value not in names:
        raise BadRequest(f"{field} {value} is not known", field=field, value=value, allowed=sorted(set(names.values())))
    return names[value]


def _value(value: Any) -> Any:
    match value:
        case pa.Table():
            return table_message(value)
        case Provenance():
            return provenance_message(value)
    return value
