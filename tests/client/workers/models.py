"""What a stand-in says of a model and a text: by the contract, with numbers of which each can be told apart.

Texts are split as in stand_in_saes. There are LAYERS layers of HEADS heads.
"""

import pyarrow as pa
from grpc_status import rpc_status

from actstore_api.reasons import to_status
from actstore_api.records import model
from actstore_api.records.terms import Failure
from tests.client.workers.saes import number, read, split, told

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


class StandInModels:
    def TokenizeText(self, asked, context):
        texts = split(asked.text, False) if asked.one_token else read(asked.text, asked.prepend_bos)
        if asked.one_token and len(texts) != 1:
            context.abort_with_status(rpc_status.to_status(to_status(SEVERAL)))
        return model.TokenizeTextAnswer(tokens=_tokens(texts), provenance=told(model=asked.model.name))

    def GetAttention(self, asked, context):
        texts = read(asked.text, asked.prepend_bos)
        places = [(layer, head) for layer in _chosen(asked.layers, LAYERS) for head in _chosen(asked.heads, HEADS)]
        rows = [
            {"layer": layer, "head": head} | {name: measure(name, layer, head) for name in MEASURES}
            for layer, head in places
        ]
        weights = None
        if asked.patterns:
            weights = [
                {"layer": layer, "head": head, "query": query, "key": key, "weight": weight(query, key)}
                for layer, head in places
                for query in range(len(texts))
                for key in range(query + 1)
            ]
        return model.GetAttentionAnswer(
            heads=pa.Table.from_pylist(rows),
            patterns=None if weights is None else pa.Table.from_pylist(weights),
            tokens=_tokens(texts),
            provenance=told(model=asked.model.name),
        )

    def GetInductionScores(self, asked, context):
        rows = [
            {"layer": layer, "head": head} | {name: measure(name, layer, head) for name in SCORES}
            for layer in _chosen(asked.layers, LAYERS)
            for head in _chosen(asked.heads, HEADS)
        ]
        return model.GetInductionScoresAnswer(
            heads=pa.Table.from_pylist(rows),
            tokens=48 if asked.tokens is None else asked.tokens,
            loss_first=LOSS_FIRST,
            loss_second=LOSS_SECOND,
            provenance=told(model=asked.model.name),
        )

    def GetTextLens(self, asked, context):
        if asked.model.name == "encoder":
            context.abort_with_status(rpc_status.to_status(to_status(ENCODER)))
        texts = read(asked.text, asked.prepend_bos)
        layers = _chosen(asked.layers, LAYERS)
        tops = [
            {
                "layer": layer, "position": position, "rank": rank, "token": rank,
                "text": top_text(layer, position, rank), "logit": 10.0 - rank,
                "probability": (1 + layer) / (4.0 * rank),
            }
            for layer in layers for position in range(len(texts)) for rank in range(1, asked.k + 1)
        ]  # fmt: skip
        return model.GetTextLensAnswer(
            tops=pa.Table.from_pylist(tops),
            positions=_positions(texts, layers, asked.target),
            tokens=_tokens(texts),
            provenance=told(model=asked.model.name),
        )

    def SteerText(self, asked, context):
        prompt = read(asked.prompt, asked.prepend_bos)
        steered = [f" s{number}" for number in range(asked.max_new_tokens)]
        unsteered = [f" u{number}" for number in range(asked.max_new_tokens)]
        rows = [
            {
                "generated": by, "position": len(prompt) + place, "token": place, "text": text,
                "steered": -1.0 - place, "unsteered": -2.0, "kl": 0.5 * place,
            }
            for by, texts in (("steered", steered), ("unsteered", unsteered)) for place, text in enumerate(texts)
        ]  # fmt: skip
        factor = 1.0 if asked.unit == "absolute" else MEAN_NORM
        shown = _tokens(prompt).append_column("steered", pa.array([text != "<bos>" for text in prompt]))
        return model.SteerTextAnswer(
            tokens=pa.Table.from_pylist(rows),
            prompt=shown,
            steered_text="".join(steered),
            unsteered_text="".join(unsteered),
            site=asked.site or "resid_post.1",
            mean_norm=MEAN_NORM,
            strength=None if asked.strength is None else asked.strength * factor,
            provenance=told(model=asked.model.name),
        )

    def AblateSites(self, asked, context):
        rows = []
        for layer in _chosen(asked.layers, LAYERS):
            for kind in asked.sites or ("attn_out", "mlp_out", "z"):
                for head in _chosen(asked.heads, HEADS) if kind == "z" else (None,):
                    site = f"{kind}.{layer}" + ("" if head is None else f".{head}")
                    moved = change(kind, layer, head)
                    where = {"site": site, "kind": kind, "layer": layer, "head": head}
                    rows.append(where | {"loss": LOSS + moved, "change": moved})
        count = len(asked.texts)
        by_text = pa.table({"text": range(count), "tokens": [COUNTED // count] * count, "loss": [LOSS] * count})
        return model.AblateSitesAnswer(
            effects=pa.Table.from_pylist(rows),
            texts=by_text,
            loss=LOSS,
            tokens=COUNTED,
            provenance=told(model=asked.model.name),
        )

    def CompareTokens(self, asked, context):
        clean = read(asked.clean, asked.prepend_bos)
        tokens, heads = [], []
        corrupt = [read(prompt, asked.prepend_bos) for prompt in asked.corrupt]
        for place, prompt, text in _replaced(clean, corrupt):
            row = {**place, "prompt": prompt, "token": number(text), "text": text}
            z = ODD_Z if text == ODD else 0.5
            own = {"norm": 1.0 + z, "norm_z": z, "norm_below": 0.5, "cosine_to_mean": 0.1, "cosine_z": -0.5}
            tokens.append(row | own | {"cosine_to_clean": None if prompt == "clean" else 0.25})
            heads += [
                {**place, "prompt": prompt, "layer": layer, "head": head} | _attended(text, prompt, head)
                for layer in _chosen(asked.layers, 1)
                for head in range(HEADS)
            ]
        return model.CompareTokensAnswer(
            tokens=pa.Table.from_pylist(tokens),
            heads=pa.Table.from_pylist(heads),
            provenance=told(model=asked.model.name),
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


def _chosen(wanted, count):
    return list(wanted) or list(range(count))


def _tokens(texts: list[str]) -> pa.Table:
    return pa.table(
        {
            "position": pa.array(range(len(texts)), pa.int32()),
            "token": pa.array([number(text) for text in texts], pa.int32()),
            "text": texts,
            "special": [text == "<bos>" for text in texts],
        }
    )


def _positions(texts: list[str], layers: list[int], target: str | int | None) -> pa.Table:
    if isinstance(target, int):
        (target,) = read((target,), None)
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
