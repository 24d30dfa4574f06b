"""What is known of a training before its first step: whether its steps are too few for what they are to do."""

import math

from actstore_worker.training.recipe import Training

# Of a training's steps: the learning rate and a penalty rise over the first 5 %, and the learning rate falls to 0 over
# the last 20 % (Anthropic, April 2024 update, whose steps SAELens's tutorials take).
WARM_UP_SHARE, DECAY_SHARE = 0.05, 0.2
# A rise of fewer steps is a jump.
WARM_UP_STEPS_LEAST = 10
# Steps times learning rate: about how far Adam can move a weight in all. The unit directions of features have elements
# of 0.1 or less; below this, most features of the bundled model's SAEs were dead in the end: docs/how-to/train-saes.md.
TRAVEL_LEAST = 0.5


def warnings_of(training: Training) -> list[str]:
    """Sentences, each with the number of steps that would do; none where there are enough."""
    window, rate = training.dead_after_steps, training.learning_rate
    needed = [
        (WARM_UP_STEPS_LEAST / WARM_UP_SHARE, "the learning rate rises over a twentieth of them, which is a jump"),
        (
            2 * window,
            f"a feature counts as dead after {window:,} steps without firing (--dead-after-steps), so that none is "
            "counted, or brought back to life",
        ),
        (
            TRAVEL_LEAST / rate,
            f"at a learning rate of {rate:g} (--learning-rate) features stay near where they were drawn, and most will "
            "be dead",
        ),
    ]
    return [_sentence(training, math.ceil(steps), why) for steps, why in needed if training.steps < steps]


def _sentence(training: Training, steps: int, why: str) -> str:
    return (
        f"{training.steps:,} steps of {training.batch_rows:,} rows are few: {why}; it takes {steps:,} steps, "
        f"as with --rows {steps * training.batch_rows}"
    )
