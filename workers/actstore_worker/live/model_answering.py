"""A question to a model alone to its answer."""

from actstore_worker.live.attention import score_induction, see_attention
from actstore_worker.live.model_questions import (
    AloneAnswer,
    AloneQuestion,
    LensText,
    ScoreInduction,
    SeeAttention,
)
from actstore_worker.live.passes import Passes
from actstore_worker.live.questions import LiveLimits
from actstore_worker.live.text_lens import lens_text


def answer_alone(question: AloneQuestion, passes: Passes, limits: LiveLimits) -> AloneAnswer:
    match question:
        case SeeAttention():
            return see_attention(passes, question, limits)
        case ScoreInduction():
            return score_induction(passes, question, limits)
        case LensText():
            return lens_text(passes, question, limits)
    raise AssertionError(question)
