"""Limits on what one question may ask for, and on how much of it is computed at once."""

from dataclasses import dataclass

from actstore_storage.settings.checks import check_positive


@dataclass(frozen=True)
class LiveLimits:
    # SAEs that one replica keeps loaded.
    saes: int = 4
    # Features of one logit lens, and tokens at each end.
    lens_features: int = 256
    lens_tokens: int = 1000
    # Features in one answer about neighbors.
    neighbors: int = 1000
    # Single tokens and pairs that one question ablates in a text.
    ablations: int = 20_000
    # Stored tokens of one check.
    check_tokens: int = 131_072
    # Attention weights in one answer, and in one layer of one pass, which holds those of all its heads.
    attention_weights: int = 2_000_000
    attention_elements: int = 1 << 26
    # Texts of random tokens over which induction scores are averaged.
    induction_texts: int = 64
    # Rows of one lens on a text: layers x positions x tokens of each.
    lens_rows: int = 500_000
    # Tokens that one question generates, both with and without steering.
    steered_tokens: int = 512
    # Ablated sites and heads x tokens of the texts, in one question.
    ablated_tokens: int = 2_000_000
    # In one question about corrupt prompts: prompts, drawn tokens for comparison, and tokens of the prompts with drawn
    # tokens in them (prompts x replaced tokens x draws x length).
    compared_prompts: int = 64
    compared_draws: int = 1024
    compared_tokens: int = 500_000
    # Random inputs on which norms of outputs are sampled, and MLP units over whose pairs a formula sums.
    weight_samples: int = 65_536
    weight_units: int = 8192
    # Tokens, summed over the rows, in one forward pass; at least one row always runs.
    tokens_per_slice: int = 4096

    def __post_init__(self) -> None:
        check_positive(self)
