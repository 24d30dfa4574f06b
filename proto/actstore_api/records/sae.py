"""What an SAE and its model say about a text given now, and about the directions in their weights.

`prepend_bos` None: a text gets a BOS where the tokenizer has one, token ids get none.
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from actstore_api.records.terms import ModelReference, Name, Prompt, Provenance

# Which of a feature's two directions. The encoder's reads, the decoder's writes.
FeatureSide = Literal["decoder", "encoder"]
# What is taken away from a text to see whether a feature reads it:
# - delete: the token is gone, the text is shorter by one;
# - zero_embedding: what goes into the first layer at the token is zero;
# - zero_residual: what goes into every layer up to the SAE's own is zero at the token;
# - mean_residual: ... is the mean over the cut text's tokens there, without BOS.
TextAblation = Literal["delete", "zero_embedding", "zero_residual", "mean_residual"]


@dataclass(frozen=True)
class EncodeText:
    """Asks which features fire on a text."""

    model: ModelReference
    sae: Name
    text: Prompt
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class EncodeTextAnswer:
    """Features that fire on a text. `tokens`: position, token, text, special. `activations`: position, feature,
    activation; those above 0, in order of position, then feature.
    """

    tokens: pa.Table
    activations: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class GetLogitLens:
    """Asks which tokens the direction of each of one to 256 features makes likelier, and which less likely.

    `fold_norm` multiplies the direction with the final norm's gain, and centers it where that norm does, before it is
    unembedded. Tokens whose unembedding vector is longer than `longest_unembedding` are left out, as rare tokens' are;
    None: none is. `k` tokens are at the top, and as many at the bottom.
    """

    model: ModelReference
    sae: Name
    features: tuple[int, ...]
    side: FeatureSide = "decoder"
    fold_norm: bool = False
    longest_unembedding: float | None = None
    k: int = 20


@dataclass(frozen=True)
class GetLogitLensAnswer:
    """Tokens at both ends of features' directions: feature, end (top, bottom), rank (from 1), token, text, logit.

    `masked_tokens` were left out for their unembedding's length.
    """

    tokens: pa.Table
    masked_tokens: int
    provenance: Provenance


@dataclass(frozen=True)
class AblateText:
    """Asks what a feature becomes at `position` without each token before it; the text is cut after the position.

    `position` None: where the feature is strongest, BOS and special tokens apart, or where it never fires, the last of
    those. It is 1 at least: of a text of one token nothing is left. `pairs` takes every pair of tokens beside every
    single one: what reads "either of two" shows in pairs alone. Tokens before `first_ablated` stay, and are read all
    the same.
    """

    model: ModelReference
    sae: Name
    feature: int
    text: Prompt
    prepend_bos: bool | None = None
    position: int | None = None
    ablation: TextAblation = "delete"
    pairs: bool = False
    first_ablated: int = 0


@dataclass(frozen=True)
class AblateTextAnswer:
    """What a feature becomes without tokens of a text.

    `effects`: first, second (positions; second is null for a single token), first_text, second_text, activation (of the
    feature at the text's last token then), change (activation less that of the whole text). `tokens`, of the text as it
    is: position, token, text, special, activation. `activation` is that of the whole text at `position`.
    """

    effects: pa.Table
    tokens: pa.Table
    position: int
    activation: float
    provenance: Provenance


@dataclass(frozen=True)
class AblateDirection:
    """Asks what the model predicts of a text without what a feature writes."""

    model: ModelReference
    sae: Name
    feature: int
    text: Prompt
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class AblateDirectionAnswer:
    """What the model predicts without what a feature writes, a row a token but the last.

    Columns position, token, text, special, activation, next_text, log_probability (natural, of the true next token),
    ablated (the same without the feature's contribution), change (ablated less log_probability).
    """

    tokens: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class FindNeighbors:
    """Asks for the `k` features at most whose directions are nearest to that of a feature, or to d_model numbers.

    Vectors of `side` are compared: with a feature, both its own and the others'.
    """

    sae: Name
    direction: int | tuple[float, ...]
    side: FeatureSide = "decoder"
    k: int = 20


@dataclass(frozen=True)
class FindNeighborsAnswer:
    """Features by nearness, largest first: feature, cosine. A feature is not among its own neighbors."""

    features: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class CheckSae:
    """Asks whether an SAE is right for a run's model, on so many of its stored tokens.

    Whole sequences are looked at, spread evenly over the run.
    """

    run: Name
    sae: Name
    tokens: int = 8192


@dataclass(frozen=True)
class CheckSaeAnswer:
    """Whether an SAE is right for a run's model. `warnings` say what looks wrong; empty where nothing does.

    `quantities`: quantity, value (null where it is no number), claimed (null where the SAE's files claim nothing). They
    are tokens (those counted: BOS and special ones are not), l0, fvu (variance unexplained over variance about the
    mean), dead_share (features that fire on none of the tokens), loss (mean cross-entropy in nats of the token after
    each of them), loss_reconstructed (with the SAE's reconstruction in place of what is there; at BOS and special
    tokens it is left as it is), loss_zeroed (with zeros in its place), loss_recovered ((zeroed - reconstructed) /
    (zeroed - loss)). An encoder predicts no next token, so its SAEs have no losses.
    """

    quantities: pa.Table
    warnings: tuple[str, ...]
    provenance: Provenance
