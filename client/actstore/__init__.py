"""Ask a lab's activation store: what makes a feature fire, how norms grow, what a patch changes.

lab = actstore.connect()                # the stack that `actstore up` started here
lab = actstore.connect("host:port")     # a service
lab = actstore.connect("./store")       # a bucket by itself, or "s3://bucket/prefix"

async with actstore.connect_async() as lab:   # the same for asyncio: run = await lab.run("name")
"""

from actstore._answer import Answer, Listing, Table, Verdict
from actstore._async.connect import connect_async
from actstore._async.features import AsyncFeature, AsyncSaeFeatures
from actstore._async.lab import AsyncLab
from actstore._async.runs import AsyncCapture, AsyncCaptures, AsyncCheckpoints, AsyncRun
from actstore._checks import Text
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
from actstore._features.live import DirectionAblation, EncodedText, LensEnd, LogitLens, SaeCheck, TextAblation
from actstore._features.page import FeaturePage
from actstore._features.questions import ExampleSpread
from actstore._features.stored import Examples, FeatureRows, FeatureStatistics, FeatureTable, ManyExamples, TokenR2
from actstore._lab import Lab
from actstore._models.answers import (
    Attention,
    AttentionMeasure,
    InductionScore,
    InductionScores,
    LensMeasure,
    TextLens,
    TextTokens,
    TopColumn,
)
from actstore._models.calls import LensSite
from actstore._models.interventions import SiteAblation, SteeredText, Writer
from actstore._norms.answer import NormAnswer, NormExclusion, NormSize
from actstore._norms.asking import NormGrouping
from actstore._norms.growth import Growth, plot_growth
from actstore._norms.profiles import CheckpointNorms, NormProfile
from actstore._norms.separability import Separability
from actstore._norms.tokens import TokenNorms
from actstore._norms.toy import DepthSimulation, ToyModel, simulate_depth
from actstore._norms.weights import Sublayer, WeightNorms
from actstore._patching.corruptions import CorruptionComparison, compare_corruptions
from actstore._patching.replaced_tokens import TokenComparison
from actstore._patching.request import Answers, Joint, PatchOptions, SpanPart, Spans
from actstore._patching.sweep import Sweep, SweptCells
from actstore._patching.values import PatchedSae, Receivers
from actstore._runs.activations import Activations
from actstore._runs.checkpoints import Captures, Checkpoints
from actstore._runs.rows import ExportLayout
from actstore._runs.run import Capture, Run
from actstore._runs.specification import Batching, CaptureOptions, Dataset
from actstore._stack.stack import LocalStack
from actstore._transport.access import Retries, S3Access, Timeout
from actstore._where import Excluded, NamedRun, StoredRows, StoredText, Where
from actstore_api.records.activation import RowColumn
from actstore_api.records.capture import (
    CaptureEstimate,
    CaptureProgress,
    CaptureSpecification,
    CaptureState,
    Comparison,
    DatasetFiles,
    DatasetReference,
    Positions,
    PositionsKind,
    QueuePlace,
    RowFilter,
    ShardFailure,
)
from actstore_api.records.catalog import SaeAttachment
from actstore_api.records.feature import ActiveFeatureOrder, FeatureStatistic, SampleMethod
from actstore_api.records.information import Capabilities, ServiceInfo, ServiceLimits, WorkersInfo
from actstore_api.records.model import SiteAblation as AblationKind
from actstore_api.records.model import SteeredPositions, SteeringMode, StrengthUnit
from actstore_api.records.norm import GrowthAxis, GrowthVerdict, NormQuantity, SeparabilityVerdict
from actstore_api.records.patching import (
    PatchDirection,
    PatchPositions,
    PatchSource,
    PathMlps,
    PromptPair,
    SaeError,
    Screen,
    SweepAudit,
    SweepEstimate,
    SweepKernel,
    TakenRows,
)
from actstore_api.records.sae import FeatureSide
from actstore_api.records.sae import TextAblation as TokenAblation
from actstore_api.records.terms import Dtype, Failure, ModelReference, Provenance, TokenClass

__all__ = [
    "AblationKind",
    "Activations",
    "ActiveFeatureOrder",
    "ActstoreError",
    "Answer",
    "Answers",
    "AsyncCapture",
    "AsyncCaptures",
    "AsyncCheckpoints",
    "AsyncFeature",
    "AsyncLab",
    "AsyncRun",
    "AsyncSaeFeatures",
    "Attention",
    "AttentionMeasure",
    "BadRequest",
    "Batching",
    "Cancelled",
    "Capabilities",
    "Capture",
    "CaptureEstimate",
    "CaptureOptions",
    "CaptureProgress",
    "CaptureSpecification",
    "CaptureState",
    "Captures",
    "CheckpointNorms",
    "Checkpoints",
    "Comparison",
    "Conflict",
    "CorruptObject",
    "CorruptionComparison",
    "Dataset",
    "DatasetFiles",
    "DatasetReference",
    "Denied",
    "DepthSimulation",
    "DirectionAblation",
    "Dtype",
    "EncodedText",
    "ExampleSpread",
    "Examples",
    "Excluded",
    "ExportLayout",
    "Failure",
    "Fault",
    "Feature",
    "FeaturePage",
    "FeatureRows",
    "FeatureSide",
    "FeatureStatistic",
    "FeatureStatistics",
    "FeatureTable",
    "Growth",
    "GrowthAxis",
    "GrowthVerdict",
    "InductionScore",
    "InductionScores",
    "Joint",
    "Lab",
    "LensEnd",
    "LensMeasure",
    "LensSite",
    "LimitExceeded",
    "Listing",
    "LocalStack",
    "LogitLens",
    "ManyExamples",
    "MissingLibrary",
    "ModelReference",
    "NamedRun",
    "NormAnswer",
    "NormExclusion",
    "NormGrouping",
    "NormProfile",
    "NormQuantity",
    "NormSize",
    "NotFound",
    "PatchDirection",
    "PatchOptions",
    "PatchPositions",
    "PatchSource",
    "PatchedSae",
    "PathMlps",
    "Positions",
    "PositionsKind",
    "PromptPair",
    "Provenance",
    "QueuePlace",
    "Receivers",
    "Retries",
    "RowColumn",
    "RowFilter",
    "Run",
    "S3Access",
    "SaeAttachment",
    "SaeCheck",
    "SaeError",
    "SaeFeatures",
    "SaeWarning",
    "SampleMethod",
    "Screen",
    "Separability",
    "SeparabilityVerdict",
    "ServiceInfo",
    "ServiceLimits",
    "ShardFailure",
    "SiteAblation",
    "SpanPart",
    "Spans",
    "StackFailed",
    "SteeredPositions",
    "SteeredText",
    "SteeringMode",
    "StoreFailed",
    "StoredRows",
    "StoredText",
    "StrengthUnit",
    "Sublayer",
    "Sweep",
    "SweepAudit",
    "SweepEstimate",
    "SweepKernel",
    "SweptCells",
    "Table",
    "TakenRows",
    "Text",
    "TextAblation",
    "TextLens",
    "TextTokens",
    "Timeout",
    "TokenAblation",
    "TokenClass",
    "TokenComparison",
    "TokenNorms",
    "TokenR2",
    "TopColumn",
    "ToyModel",
    "Unavailable",
    "Verdict",
    "WeightNorms",
    "Where",
    "WorkersInfo",
    "Writer",
    "compare_corruptions",
    "connect",
    "connect_async",
    "plot_growth",
    "simulate_depth",
]
