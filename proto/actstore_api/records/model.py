"""What a language model does with a text given now, and how large its weights are.

Of a question: empty layers and heads are all that there are. `prepend_bos` None: a text gets a BOS where the tokenizer
has one, token ids get none.
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from actstore_api.records.terms import ModelReference, Prompt, Provenance, SaeFeature, StoredSample, TokenReference

# What is done along a direction:
# - add: the strength is added along it;
# - set: what is there along it becomes the strength: of a vector the projection, of a feature what it writes;
# - project_out: the projection onto it is taken away, without any strength.
SteeringMode = Literal["add", "set", "project_out"]
# mean_norm: the mean L2 norm at the site over the prompt's tokens, special ones apart; absolute: those of the site's
# own vectors.
StrengthUnit = Literal["mean_norm", "absolute"]
# Special tokens of the prompt, BOS among them, are steered nowhere.
SteeredPositions = Literal["all", "prompt", "generated"]
# What takes the place of a part's activations, at every token that is not special: zero; the mean over the texts'
# tokens, or over those of a stored sample; what is there in another of the texts.
SiteAblation = Literal["zero", "mean", "resample"]


@dataclass(frozen=True)
class TokenizeText:
    """Asks for the tokens that the model reads of a text; of token ids, for what they stand for.

    `one_token`: asks for the one token that has this text, as answers show it or as the tokenizer makes one of it.
    """

    model: ModelReference
    text: Prompt
    prepend_bos: bool | None = None
    one_token: bool = False


@dataclass(frozen=True)
class TokenizeTextAnswer:
    """Tokens and how the model shows them: position, token, text, special."""

    tokens: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class GetAttention:
    """Asks where each head attends in a text; with `patterns`, for every weight, too."""

    model: ModelReference
    text: Prompt
    prepend_bos: bool | None = None
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    patterns: bool = False


@dataclass(frozen=True)
class GetAttentionAnswer:
    """Where each head attends in a text.

    `heads`, a row a head: layer, head; means over queries: entropy (nats), distance (tokens between query and key);
    shares of all the head's attention: previous_token, first_token, current_token, duplicate_token (earlier occurrences
    of the query's token), induction (tokens after those). `patterns`: layer, head, query, key, weight; where attention
    is causal, keys up to the query; None unless asked for. `tokens`: position, token, text, special.
    """

    heads: pa.Table
    patterns: pa.Table | None
    tokens: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class GetInductionScores:
    """Asks how much each head attends as induction heads do, on `tokens` random ones that then come a second time.

    `tokens` None: 48 different ones, or as many as fit. Scores are means over `texts` such texts.
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
    """How much each head attends as induction heads do.

    `heads`, a row a head: layer, head, and mean weights of the second time's queries: induction (on the token after the
    first occurrence of their own), duplicate_token (on that occurrence), previous_token. `loss_first` and `loss_second`
    are mean cross-entropies in nats of the `tokens` but the first: the first time, when they cannot be known, and the
    second.
    """

    heads: pa.Table
    tokens: int
    loss_first: float
    loss_second: float
    provenance: Provenance


@dataclass(frozen=True)
class GetTextLens:
    """Asks what the residual stream would predict at each layer and position of a text: the logit lens.

    `site` is a kind: resid_pre, resid_mid or resid_post. `k` tokens of each prediction are told. `target` is looked for
    at every position; None: each position's true next token.
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

    `tops`, a row a layer, position and rank: layer, position, rank (from 1), token, text, logit, probability.
    `positions`, a row a layer and position: layer, position, target, target_text, target_rank (1 + tokens with larger
    logits), target_log_probability (natural; these four are null where nothing follows), entropy (nats), kl (nats, of
    the model's output from the layer's prediction). `tokens`: position, token, text, special.
    """

    tops: pa.Table
    positions: pa.Table
    tokens: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class SteerText:
    """Asks how a text goes on when the model is steered along a direction.

    `direction` is a vector, of as many numbers as `site` has, of which the length counts nowhere; or a feature, along
    whose decoder direction its SAE's site is steered. `site` is KIND.LAYER of the residual stream, of a vector only.
    `strength` is needed but for project_out, and refused there. `max_new_tokens` are generated; the model's end token
    ends a text. At `temperature` 0 each is the likeliest.
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
    """How a text goes on with steering, and without.

    `tokens`, a row a generated token: generated (steered, unsteered: which model wrote it), position, token, text, and,
    whatever the temperature, the natural log-probability that each model gives it: steered, unsteered; kl (nats, of the
    steered model's prediction there from the unsteered one's). `prompt`: position, token, text, special, steered
    (whether it was). `mean_norm` is of the site over the prompt's tokens, special ones apart; `strength` in the units
    of the site's vectors, None of project_out.
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
    """Asks what the loss becomes without each of the model's parts. `texts` are all texts, or all token ids.

    Of `sites`, a kind stands for it in each layer, and for each head of it; KIND.LAYER is a whole site, z.LAYER.HEAD a
    head; empty: attn_out, mlp_out and z. `layers` are of kinds, `heads` of kinds with heads. The mean of mean is over
    the `stored` sample of a run of this model, or over the texts. For resample, `seed` says which text gives to which,
    and which of its positions: the same one where `same_position`, of texts of as many tokens each; else a random one
    that is not special.
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
    """What the loss becomes without each of the model's parts; it is the mean cross-entropy in nats over `tokens`.

    Those follow tokens that are not special. `effects`, a row a part, taken away alone: site, kind, layer, head (null
    for a whole site), loss, change (loss less that of the whole model). `texts`, a row a text, nothing taken away: text
    (its number), tokens (that count), loss (null where none counts).
    """

    effects: pa.Table
    texts: pa.Table
    loss: float
    tokens: int
    provenance: Provenance


@dataclass(frozen=True)
class CompareTokens:
    """Asks which replaced tokens of corrupt prompts the model treats unlike other tokens.

    Each corrupt prompt has as many tokens as the clean one, and is different from it. Heads of `layers` are looked at;
    empty: of the first third, at least layer 0. `draws` ordinary tokens, none of them in the prompts, are drawn at
    random to stand for what is usual; None: 128, or as many as there are.
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
    """How a model treats replaced tokens of corrupt prompts.

    `tokens`, a row a corrupt prompt, a position where it differs, and a prompt of the two: corrupt (its number, from
    0), position, prompt (clean, corrupt), token, text; of the token's row of the embedding: norm (L2), cosine_to_mean
    (the mean embedding of the tokenizer's ordinary tokens), norm_z and cosine_z (deviations of the ordinary tokens from
    their mean; null where they do not differ), norm_below (share of the ordinary tokens with smaller norms),
    cosine_to_clean (null for the clean prompt's).

    `heads`, the same, and a row a head of the layers: corrupt, position, prompt, layer, head; attention (weight that
    later queries put on the position, in the mean), usual_attention and attention_deviation (mean and standard
    deviation of that over the same prompt with the token replaced, wherever it is, by each drawn one), shift (attention
    less the clean prompt's; null for the clean prompt's own), these four null at the last position; moved (share of the
    position's own attention that goes elsewhere than in the mean over the drawn tokens), usual_moved and
    moved_deviation (the same of the drawn tokens themselves).
    """

    tokens: pa.Table
    heads: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class GetWeightNorms:
    """Asks how large a model's weights are, and what its layers write on random input and on real.

    Embeddings and unembedding come whatever the `layers`. There are 2 to 65,536 `samples` of random input of each
    layer. A `text`, and a `stored` sample of a run of these weights, of at most 131,072 tokens, are read to compare;
    None: none is.
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
    """How large a model's weights are, and what its layers write.

    `weights`: layer (null: of the whole model), component, head (null: of all; of W_K and W_V, a key and value head),
    rows, columns, frobenius, spectral, and the same two folded: with the gain of the norm that the matrix reads
    through, and where that is a LayerNorm, centered; of a bias, with what the norm's own bias adds (null: nothing is
    read through a norm). Components are TransformerLens's: W_Q, W_K, W_V, W_O, W_OV, W_QK, W_in, W_gate, W_out, their
    biases b_Q and so on (b_O folded: with what the values' biases write), ln1.w, ln1.b, ln2.w, ln2.b, ln_final.w,
    ln_final.b, W_E, W_pos (of models that learn positions), W_U. W_QK is before what turns or norms queries and keys:
    with rotary embeddings it is the form between tokens at one position, and another at each distance.

    `sublayers`, what attention and MLP write, a row a layer, sublayer (attn, mlp) and input: gaussian (in place of what
    the norm gives), normalized (Gaussian, through the norm), text, and run (a sample of the run's tokens). Columns
    layer, sublayer, input, expected (root mean square of the written norm, by formula; of attention with every head
    attending to one token; null where there is no formula: text, run, gated MLPs, writes that are normed, more than
    8,192 units), sampled (the same over the samples, or the tokens of text or run but BOS and special ones),
    standard_error (of sampled), active_expected and active_sampled (share of MLP units whose pre-activation, of gated
    MLPs the gate's, is above 0; null for attention).
    """

    weights: pa.Table
    sublayers: pa.Table
    provenance: Provenance
