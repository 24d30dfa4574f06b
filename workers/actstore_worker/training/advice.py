"""Warnings before a training starts: whether it has too few steps."""

import math

from actstore_worker.training.recipe import Training

# As fractions of a training's steps: the learning rate and a penalty rise over the first 5 %, and the learning rate
# falls to 0 over the last 20 % (Anthropic, April 2024 update, as in SAELens's tutorials).
WARM_UP_SHARE, DECAY_SHARE = 0.05, 0.2
# A warm-up with fewer steps has no effect.
WARM_UP_STEPS_LEAST = 10
# Steps times learning rate: about how far Adam can move a weight in total. The unit directions of features have
# elements of 0.1 or less; below this, most features of the bundled model's SAEs were dead at the end
# (docs/how-to/train-saes.md).
TRAVEL_LEAST = 0.5


def warnings_of(training: Training) -> list[str]:
    """Returns sentences, each with the number of steps that would be enough; none if there are enough."""
    window, rate = training.dead_after_steps, training.learning_rate
    needed = [
        (
            WARM_UP_STEPS_LEAST / WARM_UP_SHARE,
            "the learning rate warms up over a twentieth of them, which is too short",
        ),
        (
            2 * window,
            f"a feature counts as dead after {window:,} steps without firing (--dead-after-steps), so no feature is "
            "counted as dead or revived",
        ),
        (
            TRAVEL_LEAST / rate,
            f"at a learning rate of {rate:g} (--learning-rate) features stay near their random initialization, and "
            "most will "
            "be dead",
        ),
    ]
    return [_sentence(training, math.ceil(steps), why) for steps, why in needed if training.steps < steps]


def _sentence(training: Training, steps: int, why: str) -> str:
    return (
        f"{training.steps:,} steps of {training.batch_rows:,} rows are too few: {why}; at least {steps:,} steps are "
        "needed, "
        f"for example with --rows {steps * training.batch_rows}"
    )
