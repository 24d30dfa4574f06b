"""Ask a lab's activation store: what makes a feature fire, how norms grow, what a patch changes.

lab = actstore.connect()                # the stack that `actstore up` started here
lab = actstore.connect("host:port")     # a service
lab = actstore.connect("./store")       # a bucket by itself, or "s3://bucket/prefix"
"""

from actstore._answer import Answer, Table, Verdict
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
from actstore._norms.growth import Growth, plot_growth
from actstore._norms.profiles import NormProfile
from actstore._norms.separability import Separability
from actstore._norms.tokens import TokenNorms
from actstore._norms.toy import DepthSimulation, simulate_depth
from actstore._norms.weights import WeightNorms
from actstore._patching.corruptions import CorruptionComparison, compare_corruptions
from actstore._patching.replaced_tokens import TokenComparison
from actstore._patching.request import Answers, Joint, PatchOptions, SpanPart, Spans
from actstore._patching.sweep import Sweep, SweptCells
from actstore._patching.values import PatchedSae, Receivers
from actstore._runs.activations import Activations
from actstore._runs.checkpoints import Captures, Checkpoints
from actstore._runs.run import Capture, Run
from actstore._stack.stack import LocalStack
from actstore._transport.access import S3Access
from actstore._where import Excluded, NamedRun, StoredRows, StoredText, Where
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
from actstore_api.records.model import SiteAblation as AblationKind
from actstore_api.records.model import SteeredPositions, SteeringMode, StrengthUnit
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
from actstore_api.records.terms import Failure, ModelReference, Provenance

__all__ = [
    "AblationKind",
    "Activations",
    "ActstoreError",
    "Answer",
    "Answers",
    "Attention",
    "AttentionMeasure",
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
    "Excluded",
    "Failure",
    "Fault",
    "Feature",
    "FeaturePage",
    "FeatureRows",
    "FeatureStatistics",
    "FeatureTable",
    "Growth",
    "InductionScore",
    "InductionScores",
    "Joint",
    "Lab",
    "LensMeasure",
    "LensSite",
    "LimitExceeded",
    "LocalStack",
    "LogitLens",
    "ManyExamples",
    "MissingLibrary",
    "ModelReference",
    "NamedRun",
    "NormProfile",
    "NotFound",
    "PatchDirection",
    "PatchOptions",
    "PatchPositions",
    "PatchSource",
    "PatchedSae",
    "PathMlps",
    "Positions",
    "PromptPair",
    "Provenance",
    "Receivers",
    "RowFilter",
    "Run",
    "S3Access",
    "SaeAttachment",
    "SaeCheck",
    "SaeError",
    "SaeFeatures",
    "SaeWarning",
    "Screen",
    "Separability",
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
    "TokenComparison",
    "TokenNorms",
    "TokenR2",
    "TopColumn",
    "Unavailable",
    "Verdict",
    "WeightNorms",
    "Where",
    "Writer",
    "compare_corruptions",
    "connect",
    "plot_growth",
    "simulate_depth",
]
