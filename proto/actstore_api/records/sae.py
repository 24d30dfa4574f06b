"""Questions that are answered by running an SAE and its model on a text, or by reading their weights.

`prepend_bos` None: a text gets a BOS if the tokenizer has one, token ids get none.
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from actstore_api.records.terms import ModelReference, Name, Prompt, Provenance

# One of a feature's two directions. The encoder's is read from the residual stream, the decoder's is written to it.
FeatureSide = Literal["decoder", "encoder"]
# How a token is ablated to see whether a feature depends on it:
# - delete: the token is deleted, so the text is one token shorter;
# - zero_embedding: the first layer's input at the token is set to zero;
# - zero_residual: the input of every layer up to the SAE's layer is set to zero at the token;
# - mean_residual: the input of every layer up to the SAE's layer is set, at the token, to its mean over the cut text's
#   tokens without BOS.
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
    """Features that fire on a text.

    `tokens`: position, token, text, special. `activations`: position, feature, activation; one row per activation above
    0, in order of position, then feature.
    """

    tokens: pa.Table
    activations: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class GetLogitLens:
    """Asks which tokens the direction of each of 1 to 256 features makes more likely, and which less likely.

    - `fold_norm`: the direction is multiplied by the final norm's gain, and centered if that is a LayerNorm, before it
      is unembedded.
    - `longest_unembedding`: tokens whose unembedding vector is longer are left out. Rare tokens often have long ones.
      None: no token is left out.
    - `k`: the number of tokens at the top, and as many at the bottom.
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

    `masked_tokens` is how many were left out because of their unembedding vector's length.
    """

    tokens: pa.Table
    masked_tokens: int
    provenance: Provenance


@dataclass(frozen=True)
class AblateText:
    """Asks for a feature's activation at `position` after ablating each earlier token. The text is cut after the
    position.

    - `position`: at least 1, because position 0 has no earlier token. None: where the feature is strongest, BOS and
      special tokens excluded; if it never fires, the last such token.
    - `pairs`: every pair of tokens is ablated too. A feature that needs either of two tokens only reacts to pairs.
    - `first_ablated`: tokens before it are never ablated, but the model still reads them.
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
    """A feature's activation after ablating tokens of a text.

    - `effects`: one row per ablated token or pair: first, second (positions; second is null for a single token),
      first_text, second_text, activation (of the feature at the cut text's last token after the ablation), change
      (activation minus that of the unablated text).
    - `tokens`: the unablated text: position, token, text, special, activation.
    - `activation`: the feature's activation at `position` in the unablated text.
    """

    effects: pa.Table
    tokens: pa.Table
    position: int
    activation: float
    provenance: Provenance


@dataclass(frozen=True)
class AblateDirection:
    """Asks for the model's predictions on a text after ablating what a feature writes."""

    model: ModelReference
    sae: Name
    feature: int
    text: Prompt
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class AblateDirectionAnswer:
    """The model's predictions after ablating what a feature writes, one row per token except the last.

    Columns: position, token, text, special, activation, next_text, log_probability (natural, of the true next token),
    ablated (the same without the feature's contribution), change (ablated minus log_probability).
    """

    tokens: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class FindNeighbors:
    """Asks for at most `k` features whose directions are nearest to that of a feature, or to a vector of d_model
    numbers.

    `side` says which directions are compared. With a feature, both its own and the others' are of this side.
    """

    sae: Name
    direction: int | tuple[float, ...]
    side: FeatureSide = "decoder"
    k: int = 20


@dataclass(frozen=True)
class FindNeighborsAnswer:
    """The nearest features: feature, cosine, in descending order. A feature is not its own neighbor."""

    features: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class CheckSae:
    """Asks whether an SAE fits a run's model, on a sample of the run's stored tokens.

    `tokens` is the approximate number of tokens. The sample consists of whole sequences, spread evenly over the run.
    """

    run: Name
    sae: Name
    tokens: int = 8192


@dataclass(frozen=True)
class CheckSaeAnswer:
    """Whether an SAE fits a run's model. `warnings` are sentences about what looks wrong.

    `quantities`: quantity, value (null if it is not a number), claimed (null if the SAE's files claim nothing). They
    are:

    - tokens: the tokens used. BOS and special tokens are not counted.
    - l0: the mean number of active features per token.
    - fvu: the fraction of variance unexplained, about the mean.
    - dead_share: the fraction of features that fire on none of the tokens.
    - loss: the mean cross-entropy, in nats, of the token after each of them. Encoders predict no next token, so their
      SAEs have no losses.
    - loss_reconstructed: the loss with the site replaced by the SAE's reconstruction, except at BOS and special tokens.
    - loss_zeroed: the loss with the site replaced by zeros in the same places.
    - loss_recovered: (zeroed - reconstructed) / (zeroed - loss).
    """

    quantities: pa.Table
    warnings: tuple[str, ...]
    provenance: Provenance
