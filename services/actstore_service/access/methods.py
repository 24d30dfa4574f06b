"""The table of what each method of the contract needs: a role, and which of its fields name runs.

A method that is not in the table is denied to everybody. A test compares the table with the contract's descriptors, and
its fields with every field that can name a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from actstore_service.access.principals import Role

READER, WRITER, ADMIN = Role.READER, Role.WRITER, Role.ADMIN


@dataclass(frozen=True)
class Rule:
    """What one method needs.

    Args:
        role: The role that the caller must have. None: every caller that is known may call it.
        runs: Fields of the question that name a run or several, as paths: `specification.run`. The caller must be
            allowed to use each. An empty name is allowed to those who may use every run: workers make up a name then.
        runs_if_given: The same, where an absent or empty field names no run.
        lists: The field of the answer that lists runs. Those that the caller may not use are left out.
    """

    role: Role | None
    runs: tuple[str, ...] = ()
    runs_if_given: tuple[str, ...] = ()
    lists: str = ""


KNOWN = None
RUN, RUNS = ("run",), ("runs",)

RULES: Mapping[str, Rule] = {
    # CatalogService. Models and SAEs belong to the store, not to a run: each reader sees all of them.
    "ListRuns": Rule(READER, lists="runs"),
    "GetRun": Rule(READER, RUN),
    "ListModels": Rule(READER),
    "ListSaes": Rule(READER),
    # CaptureService. A capture over the rows of another run needs both runs.
    "StartCapture": Rule(WRITER, ("specification.run",), ("specification.rows_of",)),
    "EstimateCapture": Rule(READER, (), ("specification.run", "specification.rows_of")),
    "ListSources": Rule(READER),
    "WatchCapture": Rule(READER, RUN),
    "CancelCapture": Rule(WRITER, RUN),
    "GetCaptureTotals": Rule(ADMIN),
    # ActivationService
    "ReadActivations": Rule(READER, RUN),
    "ReadTokens": Rule(READER, RUN),
    # FeatureService
    "GetFeatureStatistics": Rule(READER, RUN),
    "SampleExamples": Rule(READER, RUN),
    "ReadFeature": Rule(READER, RUN),
    "FindFeatures": Rule(READER, RUN),
    "GetActiveFeatures": Rule(READER, RUN),
    "GetCofiringFeatures": Rule(READER, RUN),
    # NormService
    "GetNormProfile": Rule(READER, RUNS),
    "FitGrowth": Rule(READER, RUNS),
    "GetSeparability": Rule(READER, RUNS),
    # SaeService
    "EncodeText": Rule(READER),
    "GetLogitLens": Rule(READER),
    "AblateText": Rule(READER),
    "AblateDirection": Rule(READER),
    "FindNeighbors": Rule(READER),
    "CheckSae": Rule(READER, RUN),
    # ModelService
    "TokenizeText": Rule(READER),
    "GetAttention": Rule(READER),
    "GetInductionScores": Rule(READER),
    "GetTextLens": Rule(READER),
    "SteerText": Rule(READER),
    "AblateSites": Rule(READER, (), ("stored.run",)),
    "CompareTokens": Rule(READER),
    "GetWeightNorms": Rule(READER, (), ("stored.run",)),
    # PatchingService. A kept answer is found by its question, which names the stored run: it is checked like a new one.
    "EstimateSweep": Rule(READER, (), ("sweep.stored.run",)),
    "RunSweep": Rule(READER, (), ("stored.run",)),
    # InformationService, WorkersInformationService
    "GetServiceInfo": Rule(KNOWN),
    "GetWorkersInfo": Rule(READER),
}
