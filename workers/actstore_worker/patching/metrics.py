"""The metrics of patching, at the prompt's last position: how far a patch moves the model from one answer
to the other.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

# Metrics that are normalized, so that 0 is the base run and 1 the source run, and how far these two must be apart. If
# they are closer, a normalized effect would be amplified float32 noise (about 1e-5 in a logit).
NORMALIZED = {"logit_difference": 1e-3, "log_probability": 1e-3, "probability": 1e-5, "loss": 1e-3, "kl": 1e-4}
SMALLEST_DIFFERENCE = NORMALIZED["logit_difference"]
# Rows of logits that are processed together, so that intermediate values stay in a CPU's cache.
_ELEMENTS_AT_ONCE = 1 << 18

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Metrics:
    """One number per row. The answer is the clean prompt's; `rank` is the number of more likely tokens. `kl` is
    D(source || row) in nats over the whole vocabulary.

    Heimersheim & Nanda 2024, "How to use and interpret activation patching", section 4: the logit difference is linear
    in the residual; log-probability saturates, and probability is sharp. Therefore all of them are returned.
    """

    logit_difference: Values
    log_probability: Values
    probability: Values
    loss: Values
    rank: Values
    kl: Values

    @classmethod
    def of(
        cls, logits: Float[Tensor, "row vocabulary"], answers: tuple[int, int], source: Float[Tensor, " vocabulary"]
    ) -> "Metrics":
        """Computes the metrics. `answers`: token ids of the clean and the corrupt answer. `source`: the unpatched
        source run's logits.
        """
        rows = max(1, _ELEMENTS_AT_ONCE // logits.shape[-1])
        source = source.float()
        unpatched = _Source(source, torch.softmax(source.double(), dim=-1).float(), _log_sum_exp(source[None]))
        return cls.joined([cls._of(part.float(), answers, unpatched) for part in logits.split(rows)])

    @classmethod
    def _of(
        cls,
        logits: Float[Tensor, "row vocabulary"],
        answers: tuple[int, int],
        source: "_Source",
    ) -> "Metrics":
        """D(q || p) = sum q (y - x) + log sum exp x - log sum exp y, for logits x, and y of the source. Terms are as
        small as the change, so float32 is precise enough. Sums of exponentials are in double precision.
        """
        clean, corrupt = answers
        normaliser = _log_sum_exp(logits)
        log_p = logits[:, clean].double() - normaliser
        moved = ((source.logits - logits) @ source.probabilities).double()
        found = {
            "logit_difference": logits[:, clean].double() - logits[:, corrupt].double(),
            "log_probability": log_p,
            "probability": log_p.exp(),
            "loss": -log_p,
            # Counted as floats, exact below 2^24, because comparing integers takes four times as long.
            "rank": (logits - logits[:, clean, None]).sign_().clamp_min_(0).sum(-1),
            "kl": (moved + (normaliser - source.normaliser)).clamp_min(0),
        }
        return cls(**{name: value.cpu().double().numpy() for name, value in found.items()})

    @classmethod
    def joined(cls, parts: "list[Metrics]") -> "Metrics":
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def normalized(self, name: str, base: "Metrics", source: "Metrics") -> Values | None:
        """Returns normalized metrics; None if source and base are too close to divide by their difference."""
        low, high = float(getattr(base, name)[0]), float(getattr(source, name)[0])
        if abs(high - low) < NORMALIZED[name]:
            return None
        found: Values = (getattr(self, name) - low) / (high - low)
        return found


@dataclass(frozen=True)
class _Source:
    """The unpatched source run, and values derived from it that every row needs."""

    logits: Float[Tensor, " vocabulary"]
    probabilities: Float[Tensor, " vocabulary"]
    normaliser: Float[Tensor, " 1"]


def _log_sum_exp(logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, " row"]:
    largest = logits.amax(-1, keepdim=True)
    return (logits - largest).exp_().sum(-1, dtype=torch.float64).log() + largest[:, 0]
