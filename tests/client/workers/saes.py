"""What a stand-in says of SAEs: by the contract, on the planted run's vocabulary, without a model.

A text is split at spaces; ` wordN` is token N. Feature FIRING is N on words that three divides, EVERYWHERE 0.25 on
every token, BOS_ONLY 9 on BOS. Runs steer checks: `float16` looks wrong, and `bfloat16` cannot be checked.
"""

import pyarrow as pa
from grpc_status import rpc_status

from actstore_api.reasons import to_status
from actstore_api.records import sae
from actstore_api.records.terms import Failure, ModelReference, Provenance
from tests.stored_run import BOS_ONLY, D_SAE, EVERYWHERE, FIRING, SAE

WEIGHTS, SAE_SHA256, CONFIG = "a" * 64, "d" * 64, "f" * 64
WARNINGS = ("loss_recovered is -0.2: zeros would do better", "fvu is 1.7, claimed 0.2")
UNCHECKED = Failure("SAE_MISMATCH", "the SAE reads another width", {"field": "sae", "value": SAE, "allowed": "8"})
SHORT = Failure("ARGUMENT_INVALID", "the text is one token", {"field": "text", "value": "x", "allowed": "two"})
CLAIMED_L0, L0, ACTIVATION, MASKED = 2.0, 2.5, 4.0, 3


def split(text: str, prepend_bos: bool | None) -> list[str]:
    """With BOS unless it is told not to; the first word as it is, the others with their space."""
    first, *others = text.split(" ")
    words = ([first] if first else []) + [f" {word}" for word in others]
    return ([] if prepend_bos is False else ["<bos>"]) + words


def read(prompt, prepend_bos: bool | None) -> list[str]:
    """The tokens of a text, or those that have these ids."""
    if isinstance(prompt, str):
        return split(prompt, prepend_bos)
    return [f" word{token}" if token else "<bos>" for token in prompt]


def told(**known) -> Provenance:
    """The provenance of an answer, of which the client looks at what is known here."""
    names = ("model", "weights_sha256", "tokenizer_sha256", "attention_implementation", "device", "code_version")
    return Provenance(**{**dict.fromkeys(names, ""), "dtype": "float32", **known})


def number(text: str) -> int:
    """The token's id; 37 stands for what is not in the vocabulary."""
    word = text.strip().removeprefix("word")
    return 0 if text == "<bos>" else int(word) if word.isdecimal() and text.startswith(" ") else 37


def effect(first: int, second: int | None = None) -> float:
    """A change for each token and each pair, and more than their sum where the first is 1, as of an either-or."""
    return -0.25 * first if second is None else -0.25 * (first + second) - (1.5 if first == 1 else 0.0)


class StandInSaes:
    def EncodeText(self, asked, context):
        texts = read(asked.text, asked.prepend_bos)
        rows = []
        for position, text in enumerate(texts):
            token = number(text)
            values = {EVERYWHERE: 0.25, FIRING: 0.0 if token % 3 else float(token), BOS_ONLY: 0.0}
            values |= {BOS_ONLY: 9.0} if text == "<bos>" else {}
            rows += [
                {"position": position, "feature": feature, "activation": values[feature]}
                for feature in sorted(values)
                if values[feature]
            ]
        schema = pa.schema({"position": pa.int32(), "feature": pa.int32(), "activation": pa.float32()})
        return sae.EncodeTextAnswer(
            tokens=_tokens(texts),
            activations=pa.Table.from_pylist(rows, schema),
            provenance=_provenance(asked.sae, asked.model),
        )

    def GetLogitLens(self, asked, context):
        rows = [
            {
                "feature": feature,
                "end": end,
                "rank": rank,
                "token": rank,
                "text": f" {end}{rank}",
                "logit": sign * (10.0 - rank + feature / 16),
            }
            for feature in asked.features
            for end, sign in (("top", 1.0), ("bottom", -1.0))
            for rank in range(1, asked.k + 1)
        ]
        masked = 0 if asked.longest_unembedding is None else MASKED
        return sae.GetLogitLensAnswer(
            tokens=pa.Table.from_pylist(rows), masked_tokens=masked, provenance=_provenance(asked.sae, asked.model)
        )

    def AblateText(self, asked, context):
        texts = read(asked.text, asked.prepend_bos)
        if len(texts) < 3:
            context.abort_with_status(rpc_status.to_status(to_status(SHORT)))
        position = len(texts) - 1 if asked.position is None else asked.position
        chosen = [(first, None) for first in range(1, position + 1)]
        if asked.pairs:
            chosen += [(first, second) for second in range(1, position + 1) for first in range(1, second)]
        tokens = _tokens(texts).append_column("activation", pa.array([0.0] * len(texts)))
        return sae.AblateTextAnswer(
            effects=_effects(texts, chosen),
            tokens=tokens,
            position=position,
            activation=ACTIVATION,
            provenance=_provenance(asked.sae, asked.model),
        )

    def AblateDirection(self, asked, context):
        texts = read(asked.text, asked.prepend_bos)
        count = len(texts) - 1
        changes = [-0.5 * (i % 3) + 0.25 * (i % 2) for i in range(count)]
        table = _tokens(texts).slice(0, count)
        for name, values in {
            "activation": [float(i) for i in range(count)],
            "next_text": texts[1:],
            "log_probability": [-2.0] * count,
            "ablated": [-2.0 + change for change in changes],
            "change": changes,
        }.items():
            table = table.append_column(name, pa.array(values))
        return sae.AblateDirectionAnswer(tokens=table, provenance=_provenance(asked.sae, asked.model))

    def FindNeighbors(self, asked, context):
        itself = asked.direction
        others = [feature for feature in range(D_SAE) if feature != itself][: asked.k]
        cosines = [1.0 / (2 + i) for i in range(len(others))]
        table = pa.table({"feature": pa.array(others, pa.int32()), "cosine": cosines})
        provenance = told(sae_sha256={asked.sae: SAE_SHA256})
        return sae.FindNeighborsAnswer(features=table, provenance=provenance)

    def CheckSae(self, asked, context):
        if asked.run == "bfloat16":
            context.abort_with_status(rpc_status.to_status(to_status(UNCHECKED)))
        quantities = {"quantity": ["tokens", "l0"], "value": [float(asked.tokens), L0], "claimed": [None, CLAIMED_L0]}
        return sae.CheckSaeAnswer(
            quantities=pa.table(quantities),
            warnings=WARNINGS if asked.run == "float16" else (),
            provenance=told(model="planted-model", sae_sha256={asked.sae: SAE_SHA256}),
        )


def _tokens(texts: list[str]) -> pa.Table:
    return pa.table(
        {
            "position": pa.array(range(len(texts)), pa.int32()),
            "token": pa.array([number(text) for text in texts], pa.int32()),
            "text": texts,
            "special": [text == "<bos>" for text in texts],
        }
    )


def _effects(texts: list[str], chosen: list[tuple[int, int | None]]) -> pa.Table:
    rows = [
        {
            "first": first,
            "second": second,
            "first_text": texts[first],
            "second_text": None if second is None else texts[second],
            "activation": ACTIVATION + effect(first, second),
            "change": effect(first, second),
        }
        for first, second in chosen
    ]
    kinds = (pa.int32(), pa.int32(), pa.string(), pa.string(), pa.float64(), pa.float64())
    names = ("first", "second", "first_text", "second_text", "activation", "change")
    return pa.Table.from_pylist(rows, pa.schema(list(zip(names, kinds, strict=True))))


def _provenance(name: str, model: ModelReference) -> Provenance:
    return told(model=model.name, weights_sha256=WEIGHTS, config_sha256=CONFIG, sae_sha256={name: SAE_SHA256})
