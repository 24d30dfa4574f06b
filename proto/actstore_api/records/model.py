"""Questions that are answered by running a language model on a text, or by reading its weights.

In every question, empty layers or heads mean all of them. `prepend_bos` None: a text gets a BOS if the tokenizer has
one, token ids get none.
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from actstore_api.records.terms import ModelReference, Prompt, Provenance, SaeFeature, StoredSample, TokenReference

# How activations are changed along a direction:
# - add: adds `strength` times the unit direction;
# - set: sets the component along the direction to `strength`: for a vector the projection onto it, for a feature what
#   the feature writes;
# - project_out: removes the projection onto the direction, without a strength.
SteeringMode = Literal["add", "set", "project_out"]
# mean_norm: multiples of the site's mean L2 norm over the prompt's tokens, without special ones. absolute: the units of
# the site's activations.
StrengthUnit = Literal["mean_norm", "absolute"]
# The tokens at which the model is steered. Special tokens of the prompt, BOS included, are never steered.
SteeredPositions = Literal["all", "prompt", "generated"]
# What replaces the activations of an ablated site or head, at every token that is not special: zero; the mean over the
# texts' tokens, or over the tokens of a stored sample; the activation from another of the texts.
SiteAblation = Literal["zero", "mean", "resample"]


@dataclass(frozen=True)
class TokenizeText:
    """Asks for the tokens of a text as the model reads it, or for the texts of token ids.

    `one_token`: finds the single token with this text, either as answers show it or as the tokenizer encodes it.
    """

    model: ModelReference
    text: Prompt
    prepend_bos: bool | None = None
    one_token: bool = False


@dataclass(frozen=True)
class TokenizeTextAnswer:
    """Tokens and their texts: position, token, text, special."""

    tokens: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class GetAttention:
    """Asks where each head attends in a text. `patterns`: every attention weight is returned too."""

    model: ModelReference
    text: Prompt
    prepend_bos: bool | None = None
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    patterns: bool = False


@dataclass(frozen=True)
class GetAttentionAnswer:
    """Where each head attends in a text.

    - `heads`, one row per head: layer, head; averages over queries: entropy (nats), distance (tokens between query and
      key); fractions of the head's attention: previous_token, first_token, current_token, duplicate_token (earlier
      occurrences of the query's token), induction (the tokens after those).
    - `patterns`: layer, head, query, key, weight. With causal attention, keys go up to the query. None unless
      requested.
    - `tokens`: position, token, text, special.
    """

    heads: pa.Table
    patterns: pa.Table | None
    tokens: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class GetInductionScores:
    """Asks how strongly each head behaves as an induction head, on random tokens that are repeated once.

    `tokens`: the number of different tokens before the repetition. None: 48, or as many as fit. Scores are averaged
    over `texts` such texts.
    """

    model: ModelReference
    prepend_bos: bool | None = None
    tokens: int | None = None
    texts: int = 4
    seed: int = 0
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()


@dataclass(frozen=True)
class GetInductionScoresAnswer:
    """How strongly each head behaves as an induction head.

    - `heads`, one row per head: layer, head, and mean attention weights of queries in the second half: induction (to
      the token after the first occurrence of the query's token), duplicate_token (to that first occurrence),
      previous_token.
    - `loss_first`, `loss_second`: mean cross-entropy, in nats, of all tokens except the first, in each half. In the
      first half they are unpredictable.
    """

    heads: pa.Table
    tokens: int
    loss_first: float
    loss_second: float
    provenance: Provenance


@dataclass(frozen=True)
class GetTextLens:
    """Asks what the residual stream would predict at each layer and position of a text: the logit lens.

    - `site`: a kind: resid_pre, resid_mid or resid_post.
    - `k`: the number of top tokens of each prediction.
    - `target`: the token whose rank and probability are returned at every position. None: each position's true next
      token.
    """

    model: ModelReference
    text: Prompt
    prepend_bos: bool | None = None
    site: str = "resid_post"
    layers: tuple[int, ...] = ()
    k: int = 5
    target: TokenReference | None = None


@dataclass(frozen=True)
class GetTextLensAnswer:
    """What the residual stream would predict.

    - `tops`, one row per layer, position and rank: layer, position, rank (from 1), token, text, logit, probability.
    - `positions`, one row per layer and position: layer, position, target, target_text, target_rank (1 + number of
      tokens with larger logits), target_log_probability (natural; these four are null if there is no next token),
      entropy (nats), kl (D(model's output || layer's prediction), nats).
    - `tokens`: position, token, text, special.
    """

    tops: pa.Table
    positions: pa.Table
    tokens: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class SteerText:
    """Asks how the model continues a text when it is steered along a direction.

    - `direction`: a vector with as many numbers as `site` has dimensions, whose length is ignored; or an SAE feature,
      whose decoder direction is used at the SAE's output site.
    - `site`: KIND.LAYER of the residual stream. Required with a vector, refused with a feature.
    - `strength`: required, except with project_out, where it is refused.
    - `max_new_tokens`: the model's end token ends a text earlier.
    - `temperature`: 0 always chooses the most likely token.
    """

    model: ModelReference
    prompt: Prompt
    direction: tuple[float, ...] | SaeFeature
    prepend_bos: bool | None = None
    site: str = ""
    mode: SteeringMode = "add"
    strength: float | None = None
    unit: StrengthUnit = "mean_norm"
    positions: SteeredPositions = "all"
    max_new_tokens: int = 32
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class SteerTextAnswer:
    """How the model continues a text with and without steering.

    - `tokens`, one row per generated token: generated (steered or unsteered: which of the two generated it), position,
      token, text; steered, unsteered (the natural log-probability of the token with and without steering, at
      temperature 1); kl (in nats, of the steered prediction from the unsteered one).
    - `prompt`: position, token, text, special, steered (whether the token was steered).
    - `mean_norm`: the site's mean L2 norm over the prompt's tokens, without special ones.
    - `strength`: in units of the site's activations; None with project_out.
    """

    tokens: pa.Table
    prompt: pa.Table
    steered_text: str
    unsteered_text: str
    site: str
    mean_norm: float
    strength: float | None
    provenance: Provenance


@dataclass(frozen=True)
class AblateSites:
    """Asks for the model's loss after ablating each site or head separately. `texts` must be all texts, or all token
    ids.

    - `sites`: a kind stands for that site in every layer, or for each of its heads. KIND.LAYER is a whole site,
      z.LAYER.HEAD is one head. Empty: attn_out, mlp_out and z. `layers` apply to kinds, `heads` to kinds with heads.
    - `stored`: with the ablation mean, the mean is taken over this sample of a run of this model. None: over the texts.
    - `seed`: with resample, it assigns to each text another one, and positions of it.
    - `same_position`: with resample, activations come from the same position, and all texts must have the same number
      of tokens. False: they come from a random position that is not special.
    """

    model: ModelReference
    texts: tuple[Prompt, ...]
    prepend_bos: bool | None = None
    sites: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    ablation: SiteAblation = "zero"
    stored: StoredSample | None = None
    seed: int = 0
    same_position: bool = False


@dataclass(frozen=True)
class AblateSitesAnswer:
    """The model's loss after ablating each site or head separately.

    Losses are mean cross-entropies, in nats, of the tokens that follow non-special tokens; `tokens` is their number.
    `effects`, one row per ablated site or head: site, kind, layer, head (null for a whole site), loss, change (loss
    minus that of the unablated model). `texts`, one row per text, without ablation: text (its index), tokens, loss
    (null if there are no tokens).
    """

    effects: pa.Table
    texts: pa.Table
    loss: float
    tokens: int
    provenance: Provenance


@dataclass(frozen=True)
class CompareTokens:
    """Asks whether the model treats the replaced tokens of corrupt prompts differently from ordinary tokens.

    - `corrupt`: each must have as many tokens as `clean` and differ from it.
    - `layers`: the layers whose heads are compared. Empty: the first third, at least layer 0.
    - `draws`: the number of ordinary tokens for comparison. They are drawn at random among those that are not in the
      prompts. None: 128, or as many as there are.
    """

    model: ModelReference
    clean: Prompt
    corrupt: tuple[Prompt, ...]
    prepend_bos: bool | None = None
    layers: tuple[int, ...] = ()
    draws: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class CompareTokensAnswer:
    """How the model treats the replaced tokens of corrupt prompts.

    `tokens` has two rows, clean and corrupt, for each corrupt prompt and each position where it differs:

    - corrupt (index of the corrupt prompt, from 0), position, prompt (clean, corrupt), token, text.
    - About the token's embedding: norm (L2); cosine_to_mean (cosine to the mean embedding of the tokenizer's ordinary
      tokens); norm_z and cosine_z (z-scores of these two among the ordinary tokens; null if those do not vary);
      norm_below (the fraction of ordinary tokens with smaller norms); cosine_to_clean (null for the clean prompt).

    `heads` has the same rows for each head of the layers:

    - corrupt, position, prompt, layer, head.
    - attention: the mean attention weight that later queries put on the position.
    - usual_attention, attention_deviation: mean and standard deviation of that weight when every occurrence of the
      token in the prompt is replaced by each drawn token.
    - shift: attention minus that in the clean prompt; null for the clean prompt. These four are null at the last
      position.
    - moved: the fraction of the position's own attention that goes to other keys than in the mean over the drawn
      tokens.
    - usual_moved, moved_deviation: mean and standard deviation of the same for the drawn tokens.
    """

    tokens: pa.Table
    heads: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class GetWeightNorms:
    """Asks for the norms of a model's weights, and of what its layers write on random and on real input.

    Embeddings and unembedding are always included, whatever the `layers`. `samples` is the number of random inputs to
    each layer, 2 to 65,536. `text`, and `stored`, a sample of a run with the same weights of at most 131,072 tokens,
    are real inputs for comparison; None: none.
    """

    model: ModelReference
    layers: tuple[int, ...] = ()
    samples: int = 4096
    seed: int = 0
    text: Prompt | None = None
    prepend_bos: bool | None = None
    stored: StoredSample | None = None


@dataclass(frozen=True)
class GetWeightNormsAnswer:
    """The norms of a model's weights, and of what its layers write.

    `weights` has one row per weight matrix or bias:

    - layer: null for weights of the whole model.
    - component: named as in TransformerLens: W_Q, W_K, W_V, W_O, W_OV, W_QK, W_in, W_gate, W_out, their biases b_Q and
      so on, ln1.w, ln1.b, ln2.w, ln2.b, ln_final.w, ln_final.b, W_E, W_pos (of models with learned positions), W_U.
      W_QK is taken before rotary embeddings and before norms of queries and keys; with rotary embeddings it applies to
      tokens at the same position, and differs at each distance.
    - head: null for all heads together; for W_K and W_V, a key-value head.
    - rows, columns.
    - frobenius, spectral: norms of the matrix.
    - frobenius and spectral folded: with the gain of the norm that precedes the matrix, and centered if that is a
      LayerNorm. For a bias, with the contribution of that norm's bias; for b_O, with what the value biases write. Null
      if no norm precedes the weight.

    `sublayers` has the norms of what attention and MLP write, one row per layer, sublayer and input:

    - layer, sublayer (attn, mlp).
    - input: gaussian (random, instead of the norm's output), normalized (random, passed through the norm), text, or run
      (a sample of the run's tokens).
    - expected: the root mean square of the output's norm, by formula. For attention, every head attends to one token.
      Null if there is no formula: for text, run, gated MLPs, outputs that are normed, and more than 8,192 units.
    - sampled: the same, measured over the random inputs, or over tokens without BOS and special ones.
    - standard_error: of sampled.
    - active_expected, active_sampled: the fraction of MLP units whose pre-activation (in gated MLPs the gate's) is
      above 0. Null for attention.
    """

    weights: pa.Table
    sublayers: pa.Table
    provenance: Provenance
