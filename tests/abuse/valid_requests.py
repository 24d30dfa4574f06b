"""A question of every method that is answered: what the fuzz changes a field at a time.

Stored questions are of `tests/stored_run.py`; the others of the model, the SAE and the dataset of `WORKERS_NAMES`, and
of a run that was captured from them. Each sets the fields whose own fields are of interest.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from actstore_api.codec import message_of
from actstore_api.verbs import Verb

_RUN, _OF_RUN, _OF_RUNS = {"run": "planted"}, {"run": "planted", "sae": "planted-sae"}, {"runs": ["planted"]}
_WHERE = {
    "where": {"sequences": {"first": 0, "end": 5}, "positions": {"first": 0, "end": 9}, "documents": [0], "tokens": []},
    "exclude": {"classes": ["TOKEN_CLASS_BOS"]},
}
_MODEL, _TEXT = {"model": {"name": "tiny"}}, {"text": "the a b"}
_SAE = {**_MODEL, "sae": "small-sae"}
_STORED = {"stored": {"run": "captured", "tokens": 8}}
SPECIFICATION = {
    **_MODEL,
    "run": "captured",
    "dataset": {
        "name": "words.jsonl",
        "text_field": "text",
        "row_filters": [
            {"column": "text", "comparison": "COMPARISON_NOT_EQUAL", "values": [{"text": "x"}]},
            {"column": "number", "comparison": "COMPARISON_LESS", "values": [{"integer": 100}]},
            {"column": "number", "comparison": "COMPARISON_LESS", "values": [{"real": 100.5}]},
        ],
        "max_documents": 6,
    },
    "dense_sites": ["resid_post.1"],
    "positions": {"stride": 1},
    "norm_sites": ["resid_post.0", "resid_post.1"],
    "saes": ["small-sae"],
    "context_length": 32,
}
_SWEEP = {
    **_MODEL,
    "pairs": [
        {"clean": _TEXT, "corrupt": {"text": "the b a"}, "clean_answer": {"text": "a"}, "corrupt_answer": {"text": "b"}}
    ],
    "sites": ["resid_post"],
    "directions": ["PATCH_DIRECTION_DENOISE"],
}
VALID: Mapping[str, Mapping[str, Any]] = {
    "GetRun": _RUN,
    "ReadActivations": {**_RUN, "sites": ["resid_post.1"], "columns": {"columns": ["ROW_COLUMN_TOKEN"]}, **_WHERE},
    "ReadTokens": {**_RUN, **_WHERE},
    "GetFeatureStatistics": {**_OF_RUN, "feature": 3, "bins": 5},
    "SampleExamples": {**_OF_RUN, "features": [3], "method": "SAMPLE_METHOD_TOP", "k": 3, **_WHERE},
    "ReadFeature": {**_OF_RUN, "feature": 3, **_WHERE},
    "FindFeatures": {
        **_OF_RUN,
        "features": [0, 3],
        "bounds": [{"statistic": "FEATURE_STATISTIC_DENSITY", "low": 0.0, "high": 1.0}],
        "order": "FEATURE_STATISTIC_DENSITY",
    },
    "GetActiveFeatures": {**_OF_RUN, **_WHERE, "order": "ACTIVE_FEATURE_ORDER_MEAN"},
    "GetCofiringFeatures": {**_OF_RUN, "feature": 3, "k": 3},
    "GetNormProfile": {
        **_OF_RUNS,
        "sites": ["resid_post.1"],
        "by": "NORM_GROUPING_TOKEN",
        "sequences": {"first": 0, "end": 5},
        "steps": [1.0],
    },
    "FitGrowth": {**_OF_RUNS, "axis": "GROWTH_AXIS_LAYER", "site": "resid_post", "resamples": 100},
    "GetSeparability": {"runs": ["step-1", "step-2"], "site": "resid_post"},
    "StartCapture": {"specification": SPECIFICATION},
    "EstimateCapture": {"specification": SPECIFICATION},
    "WatchCapture": {"run": "captured"},
    "CancelCapture": {"run": "captured"},
    "EncodeText": {**_SAE, "text": _TEXT},
    "GetLogitLens": {**_SAE, "features": [3], "k": 3},
    "AblateText": {**_SAE, "feature": 3, "text": _TEXT, "ablation": "TEXT_ABLATION_ZERO_RESIDUAL"},
    "AblateDirection": {**_SAE, "feature": 3, "text": _TEXT},
    "FindNeighbors": {"sae": "small-sae", "feature": 3, "k": 3},
    "CheckSae": {"run": "captured", "sae": "small-sae", "tokens": 8},
    "TokenizeText": {**_MODEL, "text": _TEXT},
    "GetAttention": {**_MODEL, "text": _TEXT, "layers": [1], "heads": [0]},
    "GetInductionScores": {**_MODEL, "tokens": 4, "texts": 2, "layers": [1]},
    "GetTextLens": {**_MODEL, "text": _TEXT, "site": "resid_post", "layers": [1], "target": {"text": "a"}},
    "SteerText": {
        **_MODEL,
        "prompt": _TEXT,
        "feature": {"sae": "small-sae", "feature": 3},
        "max_new_tokens": 2,
        "strength": 1.0,
    },
    "AblateSites": {**_MODEL, "texts": [_TEXT], "sites": ["attn_out"], "ablation": "SITE_ABLATION_ZERO"},
    "CompareTokens": {**_MODEL, "clean": _TEXT, "corrupt": [{"text": "the b a"}], "draws": 10},
    "GetWeightNorms": {**_MODEL, "layers": [1], "samples": 2},
    "EstimateSweep": {"sweep": _SWEEP},
    "RunSweep": _SWEEP,
}


def valid_request(verb: Verb) -> Message:
    """A question of this method that is answered."""
    message: Message = ParseDict(VALID.get(verb.name, {}), message_of(verb.question)())
    return message
