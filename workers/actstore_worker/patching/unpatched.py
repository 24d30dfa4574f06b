"""Both prompts of a pair as they are: what patched runs begin with, take from, and are measured against."""

from collections.abc import Iterable
from dataclasses import dataclass

from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.direct import Share, direct_shares
from actstore_worker.patching.inputs.pairs import PairTokens
from actstore_worker.patching.kernels.recording import Recording, record
from actstore_worker.patching.metrics import SMALLEST_DIFFERENCE, Metrics


@dataclass(frozen=True)
class Prompt:
    """One prompt of a pair, unpatched: its run, its metrics against the other's, and its parts' direct shares."""

    recording: Recording
    metrics: Metrics
    texts: list[str]
    shares: list[Share]


@dataclass(frozen=True)
class Pair:
    tokens: PairTokens
    clean: Prompt
    corrupt: Prompt

    def sides(self, direction: str) -> tuple[Prompt, Prompt]:
        """The base run, and the source run."""
        return (self.corrupt, self.clean) if direction == "denoise" else (self.clean, self.corrupt)

    @property
    def answers(self) -> tuple[int, int]:
        return self.tokens.clean_answer, self.tokens.corrupt_answer


def run_pair(model: LanguageModel, tokens: PairTokens, sites: Iterable[Site]) -> Pair:
    """`sites`: what patches take from the runs. Direct shares want every head's z besides."""
    wanted = {*sites, *(Site(layer, "z") for layer in range(model.layer_count))}
    clean, corrupt = (record(model, ids, wanted) for ids in (tokens.clean, tokens.corrupt))
    answers = tokens.clean_answer, tokens.corrupt_answer
    prompts = []
    for recording, other in ((clean, corrupt), (corrupt, clean)):
        metrics = Metrics.of(recording.logits[None], answers, other.logits)
        texts, shares = model.texts.in_order(recording.tokens.tolist()), direct_shares(model, recording, answers)
        prompts.append(Prompt(recording, metrics, texts, shares))
    return Pair(tokens, *prompts)


def check_apart(pair: Pair) -> None:
    """Errors: BadRequest PROMPTS_INDISTINGUISHABLE."""
    clean, corrupt = (float(prompt.metrics.logit_difference[0]) for prompt in (pair.clean, pair.corrupt))
    if abs(clean - corrupt) < SMALLEST_DIFFERENCE:
        raise BadRequest(
            f"the model tells the prompts not apart by these answers: the logit difference is {clean:.6g} on the clean "
            f"prompt and {corrupt:.6g} on the corrupt one, so no effect can be normalized",
            reason="PROMPTS_INDISTINGUISHABLE",
            field="corrupt",
            value=f"{abs(clean - corrupt):.6g}",
            allowed=f"a change of at least {SMALLEST_DIFFERENCE:g}",
        )
