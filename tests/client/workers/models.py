"""What a stand-in says of a model and a text: by the contract, with numbers of which each can be told apart.

Texts are split as in stand_in_saes. There are LAYERS layers of HEADS heads.
"""

import pyarrow as pa
from grpc_status import rpc_status

from actstore_api.reasons import to_status
from actstore_api.records.terms import Failure
from actstore_api.v1 import capture_pb2, common_pb2, model_pb2, service_pb2_grpc
from tests.client.workers.saes import asked, message, number, shown, split

LAYERS, HEADS = 3, 2
MEASURES = ("entropy", "distance", "previous_token", "first_token", "current_token", "duplicate_token", "induction")
SCORES = ("induction", "duplicate_token", "previous_token")
MEAN_NORM, LOSS, COUNTED, LOSS_FIRST, LOSS_SECOND = 8.0, 2.5, 40, 9.0, 1.5
# A token that head 1 attends to, and with a long embedding.
ODD, ODD_Z = " word9", 4.5
SEVERAL = Failure("ANSWER_NOT_ONE_TOKEN", "the text is 2 tokens", {"field": "text", "value": "x", "allowed": "one"})
ENCODER = Failure("MODEL_UNSUPPORTED", "an encoder", {"field": "model", "value": "encoder", "allowed": "causal"})


def measure(name: str, layer: int, head: int) -> float:
    return (1 + MEASURES.index(name)) * 0.01 + 0.1 * layer + 0.05 * head


def weight(query: int, key: int) -> float:
    """All keys up to the query alike, but for the query itself, which gets twice as much."""
    return (2.0 if key == query else 1.0) / (query + 2)


def top_text(layer: int, position: int, rank: int) -> str:
    return f" t{layer}{position}{rank}"


def change(kind: str, layer: int, head: int | None) -> float:
    return {"attn_out": 0.5, "mlp_out": -0.2, "z": 0.1}[kind] * (1 + layer) * (1 + (head or 0))


class StandInModels(service_pb2_grpc.ModelServiceServicer):
    def TokeniseText(self, request, context):
        self._meet(request, context)
        texts = split(request.text, capture_pb2.BOS_POLICY_NONE) if request.one_token else asked(request)
        if request.one_token and len(texts) != 1:
            context.abort_with_status(rpc_status.to_status(to_status(SEVERAL)))
        return model_pb2.TokeniseTextResponse(tokens=message(_tokens(texts)), provenance=_provenance(request))

    def GetAttention(self, request, context):
        self._meet(request, context)
        texts = asked(request)
        places = [(layer, head) for layer in _chosen(request.layers, LAYERS) for head in _chosen(request.heads, HEADS)]
        rows = [
            {"layer": layer, "head": head} | {name: measure(name, layer, head) for name in MEASURES}
            for layer, head in places
        ]
        answer = model_pb2.GetAttentionResponse(
            heads=message(pa.Table.from_pylist(rows)), tokens=message(_tokens(texts)), provenance=_provenance(request)
        )
        if request.patterns:
            weights = [
                {"layer": layer, "head": head, "query": query, "key": key, "weight": weight(query, key)}
                for layer, head in places
                for query in range(len(texts))
                for key in range(query + 1)
            ]
            answer.patterns.CopyFrom(message(pa.Table.from_pylist(weights)))
        return answer

    def GetInductionScores(self, request, context):
        self._meet(request, context)
        rows = [
            {"layer": layer, "head": head} | {name: measure(name, layer, head) for name in SCORES}
            for layer in _chosen(request.layers, LAYERS)
            for head in _chosen(request.heads, HEADS)
        ]
        return model_pb2.GetInductionScoresResponse(
            heads=message(pa.Table.from_pylist(rows)),
            tokens=request.tokens if request.HasField("tokens") else 48,
            loss_first=LOSS_FIRST,
            loss_second=LOSS_SECOND,
            provenance=_provenance(request),
        )

    def GetTextLens(self, request, context):
        self._meet(request, context)
        if request.model.name == "encoder":
            context.abort_with_status(rpc_status.to_status(to_status(ENCODER)))
        texts = asked(request)
        layers = _chosen(request.layers, LAYERS)
        tops = [
            {
                "layer": layer, "position": position, "rank": rank, "token": rank,
                "text": top_text(layer, position, rank), "logit": 10.0 - rank,
                "probability": (1 + layer) / (4.0 * rank),
            }
            for layer in layers for position in range(len(texts)) for rank in range(1, request.k + 1)
        ]  # fmt: skip
        return model_pb2.GetTextLensResponse(
            tops=message(pa.Table.from_pylist(tops)),
            positions=message(_positions(texts, layers, request.target)),
            tokens=message(_tokens(texts)),
            provenance=_provenance(request),
        )

    def SteerText(self, request, context):
        self._meet(request, context)
        prompt = asked(request, "prompt")
        steered = [f" s{number}" for number in range(request.tokens)]
        unsteered = [f" u{number}" for number in range(request.tokens)]
        rows = [
            {
                "generated": by, "position": len(prompt) + place, "token": place, "text": text,
                "steered": -1.0 - place, "unsteered": -2.0, "kl": 0.5 * place,
            }
            for by, texts in (("steered", steered), ("unsteered", unsteered)) for place, text in enumerate(texts)
        ]  # fmt: skip
        factor = 1.0 if request.unit == model_pb2.STRENGTH_UNIT_ABSOLUTE else MEAN_NORM
        told = _tokens(prompt).append_column("steered", pa.array([text != "<bos>" for text in prompt]))
        return model_pb2.SteerTextResponse(
            tokens=message(pa.Table.from_pylist(rows)),
            prompt=message(told),
            steered_text="".join(steered),
            unsteered_text="".join(unsteered),
            site=request.site or "resid_post.1",
            mean_norm=MEAN_NORM,
            strength=request.strength * factor if request.HasField("strength") else None,
            provenance=_provenance(request),
        )

    def AblateSites(self, request, context):
        self._meet(request, context)
        rows = []
        for layer in _chosen(request.layers, LAYERS):
            for kind in request.sites or ("attn_out", "mlp_out", "z"):
                for head in _chosen(request.heads, HEADS) if kind == "z" else (None,):
                    site = f"{kind}.{layer}" + ("" if head is None else f".{head}")
                    moved = change(kind, layer, head)
                    where = {"site": site, "kind": kind, "layer": layer, "head": head}
                    rows.append(where | {"loss": LOSS + moved, "change": moved})
        count = len(request.texts) + len(request.token_ids)
        by_text = pa.table({"text": range(count), "tokens": [COUNTED // count] * count, "loss": [LOSS] * count})
        return model_pb2.AblateSitesResponse(
            effects=message(pa.Table.from_pylist(rows)),
            texts=message(by_text),
            loss=LOSS,
            tokens=COUNTED,
            provenance=_provenance(request),
        )

    def CompareTokens(self, request, context):
        self._meet(request, context)
        clean = asked(request, "clean", "clean_token_ids")
        tokens, heads = [], []
        corrupt = [split(text, request.bos) for text in request.corrupt]
        corrupt += [shown(found.ids) for found in request.corrupt_token_ids]
        for place, prompt, text in _replaced(clean, corrupt):
            row = {**place, "prompt": prompt, "token": number(text), "text": text}
            z = ODD_Z if text == ODD else 0.5
            own = {"norm": 1.0 + z, "norm_z": z, "norm_below": 0.5, "cosine_to_mean": 0.1, "cosine_z": -0.5}
            tokens.append(row | own | {"cosine_to_clean": None if prompt == "clean" else 0.25})
            heads += [
                {**place, "prompt": prompt, "layer": layer, "head": head} | _attended(text, prompt, head)
                for layer in _chosen(request.layers, 1)
                for head in range(HEADS)
            ]
        return model_pb2.CompareTokensResponse(
            tokens=message(pa.Table.from_pylist(tokens)),
            heads=message(pa.Table.from_pylist(heads)),
            provenance=_provenance(request),
        )


def _replaced(clean, corrupt):
    for candidate, texts in enumerate(corrupt):
        for position, (one, other) in enumerate(zip(clean, texts, strict=True)):
            if one != other:
                yield {"corrupt": candidate, "position": position}, "clean", one
                yield {"corrupt": candidate, "position": position}, "corrupt", other


def _attended(text, prompt, head) -> dict[str, float | None]:
    attention = 0.75 if text == ODD and head == 1 else 0.25
    return {
        "attention": attention, "usual_attention": 0.25, "attention_deviation": 0.0625,
        "shift": None if prompt == "clean" else attention - 0.25,
        "moved": 0.125, "usual_moved": 0.0625, "moved_deviation": 0.01,
    }  # fmt: skip


def _chosen(asked, count):
    return list(asked) or list(range(count))


def _tokens(texts: list[str]) -> pa.Table:
    return pa.table(
        {
            "position": pa.array(range(len(texts)), pa.int32()),
            "token": pa.array([number(text) for text in texts], pa.int32()),
            "text": texts,
            "special": [text == "<bos>" for text in texts],
        }
    )


def _positions(texts: list[str], layers: list[int], target: str) -> pa.Table:
    following = [target] * len(texts) if target else [*texts[1:], None]
    rows = [
        {
            "layer": layer, "position": position, "target": None if text is None else number(text), "target_text": text,
            "target_rank": None if text is None else 1 + layer + position,
            "target_log_probability": None if text is None else -1.0 - layer,
            "entropy": 3.0 - layer, "kl": float(LAYERS - 1 - layer) * (1 + position),
        }
        for layer in layers for position, text in enumerate(following)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def _provenance(request) -> common_pb2.Provenance:
    return common_pb2.Provenance(model=request.model.name, dtype="float32")
