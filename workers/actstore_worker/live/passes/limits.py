"""Limits on what one question may ask for, and on how much of it is computed at once."""

from dataclasses import dataclass

from actstore_storage.settings.checks import check_positive


@dataclass(frozen=True)
class LiveLimits:
    # SAEs that one replica keeps loaded. Beyond it, the one that was not used for longest is dropped.
    saes: int = 4
    # Features of one logit lens. A question for more is refused.
    lens_features: int = 256
    # Tokens at each end of one logit lens. A question for more is refused.
    lens_tokens: int = 1000
    # Features in one answer about neighbors. A question for more is refused.
    neighbors: int = 1000
    # Single tokens and pairs that one question ablates in a text. A question for more is refused.
    ablations: int = 20_000
    # Stored tokens of one check of an SAE. A question for more is refused.
    check_tokens: int = 131_072
    # Attention weights in one answer. A question for more is refused.
    attention_weights: int = 2_000_000
    # Attention weights in one layer of one pass, which holds those of all its heads. A text that is too long for it is
    # refused.
    attention_elements: int = 1 << 26
    # Texts of random tokens over which induction scores are averaged. A question for more is refused.
    induction_texts: int = 64
    # Rows of one lens on a text: layers x positions x tokens of each. A question for more is refused.
    lens_rows: int = 500_000
    # Tokens that one question generates, both with and without steering. A question for more is refused.
    steered_tokens: int = 512
    # Ablated sites and heads x tokens of the texts, in one question. A question for more is refused.
    ablated_tokens: int = 2_000_000
    # Corrupt prompts that one question compares. A question with more is refused.
    compared_prompts: int = 64
    # Tokens that one question about corrupt prompts draws for comparison. A question for more is refused.
    compared_draws: int = 1024
    # Tokens of corrupt prompts with drawn tokens in them: prompts x replaced tokens x draws x length. A question for
    # more is refused.
    compared_tokens: int = 500_000
    # Random inputs on which norms of outputs are sampled. A question for more is refused.
    weight_samples: int = 65_536
    # MLP units over whose pairs a formula sums. For more units it samples.
    weight_units: int = 8192
    # Tokens, summed over the rows, in one forward pass. Further rows wait for the next pass; at least one row always
    # runs.
    tokens_per_slice: int = 4096

    def __post_init__(self) -> None:
        check_positive(self)
