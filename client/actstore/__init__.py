"""Ask a lab's activation store: what makes a feature fire, how norms grow, what a patch changes.

lab = actstore.connect()                # the stack that `actstore up` started here
lab = actstore.connect("host:port")     # a service
lab = actstore.connect("./store")       # a bucket by itself, or "s3://bucket/prefix"

async with actstore.connect_async() as lab:   # the same for asyncio: run = await lab.run("name")
"""

from actstore._answer import Answer, Table, Verdict
from actstore._async.connect import connect_async
from actstore._async.features import AsyncFeature, AsyncSaeFeatures
from actstore._async.lab import AsyncLab
from actstore._async.runs import AsyncCapture, AsyncCaptures, AsyncCheckpoints, AsyncRun
from actstore._connect import connect
from actstore._errors import (
    ActstoreError,
    BadRequest,
    Cancelled,
    Conflict,
    CorruptObject,
    Denied,
    Fault,
    LimitExceeded,
    MissingLibrary,
    NotFound,
    SaeWarning,
    StackFailed,
    StoreFailed,
    Unavailable,
)
from actstore._features.feature import Feature
from actstore._features.features import SaeFeatures
from actstore._features.live import DirectionAblation, EncodedText, LogitLens, SaeCheck, TextAblation
from actstore._features.page import FeaturePage
from actstore._features.stored import (
    Examples,
    FeatureRows,
    FeatureStatistics,
    FeatureTable,
    ManyExamples,
    TokenR2,
)
from actstore._lab import Lab
from actstore._models.answers import Attention, InductionScores, SiteAblation, SteeredText, TextLens, TextTokens
from actstore._norms.growth import Growth, plot_growth
from actstore._norms.profiles import NormProfile
from actstore._norms.separability import Separability
from actstore._norms.tokens import TokenNorms
from actstore._norms.toy import DepthSimulation, simulate_depth
from actstore._norms.weights import WeightNorms
from actstore._patching.corruptions import CorruptionComparison, compare_corruptions
from actstore._patching.replaced_tokens import TokenComparison
from actstore._patching.sweep import Sweep, SweptCells
from actstore._runs.activations import Activations
from actstore._runs.checkpoints import Captures, Checkpoints
from actstore._runs.run import Capture, Run
from actstore._stack.stack import LocalStack
from actstore._transport.access import S3Access
from actstore._where import Where
from actstore_api.records.capture import (
    CaptureEstimate,
    CaptureProgress,
    CaptureSpecification,
    DatasetFiles,
    DatasetReference,
    Positions,
    RowFilter,
    ShardFailure,
)
from actstore_api.records.catalog import SaeAttachment
from actstore_api.records.patching import PromptPair, SweepAudit, SweepEstimate, TakenRows
from actstore_api.records.terms import Failure, ModelReference, Provenance

__all__ = [
    "Activations",
    "ActstoreError",
    "Answer",
    "AsyncCapture",
    "AsyncCaptures",
    "AsyncCheckpoints",
    "AsyncFeature",
    "AsyncLab",
    "AsyncRun",
    "AsyncSaeFeatures",
    "Attention",
    "BadRequest",
    "Cancelled",
    "Capture",
    "CaptureEstimate",
    "CaptureProgress",
    "CaptureSpecification",
    "Captures",
    "Checkpoints",
    "Conflict",
    "CorruptObject",
    "CorruptionComparison",
    "DatasetFiles",
    "DatasetReference",
    "Denied",
    "DepthSimulation",
    "DirectionAblation",
    "EncodedText",
    "Examples",
    "Failure",
    "Fault",
    "Feature",
    "FeaturePage",
    "FeatureRows",
    "FeatureStatistics",
    "FeatureTable",
    "Growth",
    "InductionScores",
    "Lab",
    "LimitExceeded",
    "LocalStack",
    "LogitLens",
    "ManyExamples",
    "MissingLibrary",
    "ModelReference",
    "NormProfile",
    "NotFound",
    "Positions",
    "PromptPair",
    "Provenance",
    "RowFilter",
    "Run",
    "S3Access",
    "SaeAttachment",
    "SaeCheck",
    "SaeFeatures",
    "SaeWarning",
    "Separability",
    "ShardFailure",
    "SiteAblation",
    "StackFailed",
    "SteeredText",
    "StoreFailed",
    "Sweep",
    "SweepAudit",
    "SweepEstimate",
    "SweptCells",
    "Table",
    "TakenRows",
    "TextAblation",
    "TextLens",
    "TextTokens",
    "TokenComparison",
    "TokenNorms",
    "TokenR2",
    "Unavailable",
    "Verdict",
    "WeightNorms",
    "Where",
    "compare_corruptions",
    "connect",
    "connect_async",
    "plot_growth",
    "simulate_depth",
]
