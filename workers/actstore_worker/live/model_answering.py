"""A question to a model alone to its answer."""

from collections.abc import Callable

from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.live.model_questions import (
    MEAN,
    AblateSites,
    AloneAnswer,
    AloneQuestion,
    CompareTokens,
    LensText,
    MeasureWeights,
    ScoreInduction,
    SeeAttention,
    SteerText,
    TokeniseText,
)
from actstore_worker.live.passes import Passes
from actstore_worker.live.questions import LiveLimits
from actstore_worker.live.texts.ablate_sites import ablate_sites
from actstore_worker.live.texts.attention import score_induction, see_attention
from actstore_worker.live.texts.compare_tokens import compare_tokens
from actstore_worker.live.texts.lens_of_text import lens_text
from actstore_worker.live.texts.steering import steer_text
from actstore_worker.live.texts.text import tokenise_text
from actstore_worker.live.texts.weight_norms import weight_norms
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.fit import check_fit


def answer_alone(
    question: AloneQuestion,
    passes: Passes,
    find_sae: Callable[[str], SparseAutoencoder],
    open_run: Callable[[str], Snapshot],
    limits: LiveLimits,
) -> AloneAnswer:
    """`open_run`: of the same weights."""
    match question:
        case TokeniseText():
            return tokenise_text(passes.model, question)
        case SeeAttention():
            return see_attention(passes, question, limits)
        case ScoreInduction():
            return score_induction(passes, question, limits)
        case LensText():
            return lens_text(passes, question, limits)
        case SteerText():
            sae = find_sae(question.sae) if question.sae else None
            if sae is not None:
                check_fit(sae, passes.model)
            return steer_text(passes, sae, question, limits)
        case CompareTokens():
            return compare_tokens(passes, question, limits)
        case MeasureWeights():
            of_run = open_run(question.run) if question.run else None
            return weight_norms(passes, question, limits, of_run)
        case AblateSites():
            snapshot = open_run(question.run) if question.run and question.ablation == MEAN else None
            return ablate_sites(passes, snapshot, question, limits)
