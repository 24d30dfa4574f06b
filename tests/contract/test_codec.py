"""Records are what their messages say: every field of every message, there and back, and what is absent."""

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pyarrow as pa
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore_api.codec import decode, encode, message_of, words_of
from actstore_api.codec_json import from_json, to_json
from actstore_api.codec_table import SHAPES
from actstore_api.records.capture import (
    CaptureSpecification,
    DatasetOptions,
    DatasetReference,
    Positions,
    RowFilter,
    StartCapture,
)
from actstore_api.records.feature import FindFeatures, StatisticBound
from actstore_api.records.model import AblateSites, GetTextLens, SteerText
from actstore_api.records.norm import GetNormProfile
from actstore_api.records.patching import PatchSpan, PromptPair, RunSweep, Screen, StoredSource
from actstore_api.records.sae import FindNeighbors
from actstore_api.records.terms import ModelReference, Range, SaeFeature, StoredSample
from actstore_api.shape import Unreadable
from actstore_api.v1 import (
    capture_pb2,
    common_pb2,
    feature_pb2,
    model_pb2,
    norm_pb2,
    patching_pb2,
    sae_pb2,
    service_pb2,
)
from actstore_api.verbs import NOUNS, VERBS
from tests.contract.any_records import any_record, default_of

# Positions stand for a message of another name, which codec_table carries.
RECORDS = sorted(
    {
        found
        for noun in NOUNS
        for found in vars(noun).values()
        if isinstance(found, type) and is_dataclass(found) and found not in (Positions, DatasetOptions)
    },
    key=lambda kind: kind.__name__,
)
NAMES = [kind.__name__ for kind in RECORDS]
# Messages that stand for what is in them, or for one of several, and those of codec_table.
WITHIN = {"Exclusion", "Quantiles", "RowColumns", "TokenIds", "Vector"}
WITHIN |= {"FilterValue", "Prompt", "PromptRange", "TokenReference"}
WITHIN |= {"PositionSelection", "RandomFraction", "Table"}
MODEL = ModelReference("gpt2")


@pytest.mark.parametrize("kind", RECORDS, ids=NAMES)
@settings(max_examples=20)
@given(data=st.data())
def test_what_is_sent_is_what_is_read(kind: type, data: st.DataObject) -> None:
    record = data.draw(any_record(kind))
    assert decode(kind, parsed(encode(record))) == record


@settings(max_examples=50)
@given(any_record(CaptureSpecification))
def test_what_is_written_as_json_is_what_is_read(record: CaptureSpecification) -> None:
    assert from_json(CaptureSpecification, json.loads(json.dumps(to_json(record)))) == record


@pytest.mark.parametrize("said", [{"name": "gpt2", "colour": "red"}, {"name": 5}, {"name": ["gpt2"]}, {"name": ""}])
def test_json_that_no_message_stands_for_is_refused(said: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"name|colour"):
        from_json(ModelReference, said)


def parsed(message: Message) -> Message:
    return type(message).FromString(message.SerializeToString())


@pytest.mark.parametrize("kind", RECORDS, ids=NAMES)
def test_a_record_has_every_field_of_its_message_and_no_other(kind: type) -> None:
    assert {item.name for item in fields(kind)} == set(said_in(message_of(kind).DESCRIPTOR))


def said_in(message: Descriptor) -> Iterator[str]:
    """Fields and oneofs, of which protobuf makes one for each optional field, too."""
    for field in message.fields:
        oneof = field.containing_oneof
        yield field.name if oneof is None or oneof.name == f"_{field.name}" else oneof.name


def test_every_message_has_a_record_or_is_carried_within_one() -> None:
    files = [service_pb2.DESCRIPTOR, *service_pb2.DESCRIPTOR.dependencies, common_pb2.DESCRIPTOR]
    messages = {name for file in files for name in file.message_types_by_name if file.package == "actstore_api.v1"}
    assert messages - {message_of(kind).DESCRIPTOR.name for kind in RECORDS} == WITHIN


@pytest.mark.parametrize("kind", RECORDS, ids=NAMES)
def test_words_are_those_of_the_enum(kind: type) -> None:
    hints = get_type_hints(kind)
    for field in message_of(kind).DESCRIPTOR.fields:
        element = field.message_type.fields[0] if is_within(hints.get(field.name), field) else field
        if element.enum_type is not None:
            assert set(words_in(hints[field.name])) == set(words_of(element.enum_type))


def is_within(hint: Any, field: FieldDescriptor) -> bool:
    return get_origin(hint) in (tuple, frozenset) and field.has_presence


def words_in(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        for part in get_args(hint):
            yield from words_in(part)


@pytest.mark.parametrize("kind", RECORDS, ids=NAMES)
def test_a_default_other_than_zero_is_of_what_can_be_absent(kind: type) -> None:
    """Zero, or nothing of a collection, could not be said beside another default. Of an empty text it is meant so."""
    for item in fields(kind):
        field = message_of(kind).DESCRIPTOR.fields_by_name.get(item.name)
        if field is not None and not field.has_presence and not isinstance(default_of(item), str):
            assert not default_of(item)


@pytest.mark.parametrize("kind", RECORDS, ids=NAMES)
def test_an_empty_message_is_the_record_of_defaults_or_is_refused(kind: type) -> None:
    try:
        expected = kind()
    except TypeError:
        return
    assert decode(kind, message_of(kind)()) == expected


@pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))
def test_a_verb_asks_and_answers_with_its_records(verb: Any) -> None:
    _, service, name = verb.path.split("/")
    method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    assert message_of(verb.question).DESCRIPTOR is method.input_type
    assert message_of(verb.answer).DESCRIPTOR is method.output_type


def test_how_verbs_are_asked() -> None:
    assert {name for name, verb in VERBS.items() if verb.streams} == {
        "ReadActivations", "ReadFeature", "ReadTokens", "RunSweep", "WatchCapture",
    }  # fmt: skip
    assert VERBS["GetRun"].repeatable
    assert not VERBS["GetRun"].forwarded
    assert VERBS["RunSweep"].forwarded
    assert {name for name, verb in VERBS.items() if not verb.repeatable} == {
        "CancelCapture",
        "RunSweep",
        "StartCapture",
    }


def test_who_waits_how_long() -> None:
    """What loads a model may take minutes, as what looks at every row may; a capture tokenizes a dataset first."""
    minutes = {verb.name for verb in VERBS.values() if verb.service.endswith((".SaeService", ".ModelService"))}
    minutes |= {"GetNormProfile", "SampleExamples", "FindFeatures", "GetActiveFeatures", "GetCofiringFeatures"}
    for verb in VERBS.values():
        long = verb.name in {"StartCapture", "EstimateCapture", "EstimateSweep"}
        what_answers = verb.name in {"GetServiceInfo", "GetWorkersInfo"}
        answered = 3600 if long else 600 if verb.name in minutes else 10 if what_answers else 60
        assert verb.deadline_seconds == (None if verb.streams else answered), verb.name


# In alphabetical order, so that the same question is the same bytes.
CLASSES = [common_pb2.TOKEN_CLASS_BOS, common_pb2.TOKEN_CLASS_SINK, common_pb2.TOKEN_CLASS_SPECIAL]
BY_HAND: list[tuple[Any, Message]] = [
    (MODEL, common_pb2.ModelReference(name="gpt2")),
    (
        GetTextLens(MODEL, "a b", target=7),
        model_pb2.GetTextLensRequest(
            model=common_pb2.ModelReference(name="gpt2"),
            text=common_pb2.Prompt(text="a b"),
            site="resid_post",
            k=5,
            target=common_pb2.TokenReference(id=7),
        ),
    ),
    (
        SteerText(MODEL, (1, 2), SaeFeature("sae", 3), prepend_bos=False, mode="project_out"),
        model_pb2.SteerTextRequest(
            model=common_pb2.ModelReference(name="gpt2"),
            prompt=common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids=[1, 2])),
            feature=common_pb2.SaeFeature(sae="sae", feature=3),
            prepend_bos=False,
            mode=model_pb2.STEERING_MODE_PROJECT_OUT,
            unit=model_pb2.STRENGTH_UNIT_MEAN_NORM,
            positions=model_pb2.STEERED_POSITIONS_ALL,
            max_new_tokens=32,
        ),
    ),
    (
        FindNeighbors("sae", (0.5, -1.0), side="encoder"),
        sae_pb2.FindNeighborsRequest(
            sae="sae", vector=common_pb2.Vector(elements=[0.5, -1.0]), side=sae_pb2.FEATURE_SIDE_ENCODER, k=20
        ),
    ),
    (
        FindFeatures(
            "run", "sae", bounds=(StatisticBound("token_r2", low=0.5),), exclude=frozenset({"sink", "special", "bos"})
        ),
        feature_pb2.FindFeaturesRequest(
            run="run",
            sae="sae",
            bounds=[feature_pb2.StatisticBound(statistic=feature_pb2.FEATURE_STATISTIC_TOKEN_R2, low=0.5)],
            order=feature_pb2.FEATURE_STATISTIC_DENSITY,
            k=100,
            exclude=common_pb2.Exclusion(classes=CLASSES),
        ),
    ),
    (
        AblateSites(MODEL, ("a", (1,)), ablation="mean", stored=StoredSample("run")),
        model_pb2.AblateSitesRequest(
            model=common_pb2.ModelReference(name="gpt2"),
            texts=[common_pb2.Prompt(text="a"), common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids=[1]))],
            ablation=model_pb2.SITE_ABLATION_MEAN,
            stored=common_pb2.StoredSample(run="run", tokens=8192),
        ),
    ),
    (
        GetNormProfile(("a", "b"), sequences=Range(3), exclude=frozenset(), quantiles=()),
        norm_pb2.GetNormProfileRequest(
            runs=["a", "b"],
            quantity=norm_pb2.NORM_QUANTITY_L2,
            by=norm_pb2.NORM_GROUPING_LAYER,
            sequences=common_pb2.Range(first=3),
            exclude=common_pb2.Exclusion(),
            quantiles=norm_pb2.Quantiles(),
        ),
    ),
    (
        RunSweep(
            MODEL,
            (PromptPair("a", "b", " c", 4),),
            directions=("noise",),
            spans=(PatchSpan("subject", Range(1, 3), "text"),),
            source="resample",
            stored=StoredSource("run", exclude=frozenset(), seed=5),
            screen=Screen(10),
        ),
        patching_pb2.RunSweepRequest(
            model=common_pb2.ModelReference(name="gpt2"),
            pairs=[
                patching_pb2.PromptPair(
                    clean=common_pb2.Prompt(text="a"),
                    corrupt=common_pb2.Prompt(text="b"),
                    clean_answer=common_pb2.TokenReference(text=" c"),
                    corrupt_answer=common_pb2.TokenReference(id=4),
                )
            ],
            window_layers=1,
            positions=patching_pb2.PATCH_POSITIONS_EACH,
            spans=[
                patching_pb2.PatchSpan(
                    name="subject",
                    clean=patching_pb2.PromptRange(tokens=common_pb2.Range(first=1, end=3)),
                    corrupt=patching_pb2.PromptRange(text="text"),
                )
            ],
            sae_error=patching_pb2.SAE_ERROR_KEPT,
            directions=[patching_pb2.PATCH_DIRECTION_NOISE],
            source=patching_pb2.PATCH_SOURCE_RESAMPLE,
            stored=patching_pb2.StoredSource(run="run", exclude=common_pb2.Exclusion(), seed=5),
            path_mlps=patching_pb2.PATH_MLPS_RECOMPUTED,
            screen=patching_pb2.Screen(exact_cells=10, qk_correction=True),
        ),
    ),
    (
        StartCapture(
            CaptureSpecification(
                model=MODEL,
                dataset=DatasetReference("texts", row_filters=(RowFilter("score", "not in", (1, 0.5, "a", True)),)),
                positions=Positions.random(0.25, 3),
                dtype="bfloat16",
            )
        ),
        capture_pb2.StartCaptureRequest(
            specification=capture_pb2.CaptureSpecification(
                model=common_pb2.ModelReference(name="gpt2"),
                dataset=capture_pb2.DatasetReference(
                    name="texts",
                    row_filters=[
                        capture_pb2.RowFilter(
                            column="score",
                            comparison=capture_pb2.COMPARISON_NOT_IN,
                            values=[
                                capture_pb2.FilterValue(integer=1),
                                capture_pb2.FilterValue(real=0.5),
                                capture_pb2.FilterValue(text="a"),
                                capture_pb2.FilterValue(truth=True),
                            ],
                        )
                    ],
                ),
                positions=capture_pb2.PositionSelection(random=capture_pb2.RandomFraction(fraction=0.25, seed=3)),
                dtype=common_pb2.DTYPE_BFLOAT16,
            )
        ),
    ),
]


@pytest.mark.parametrize(("record", "message"), BY_HAND, ids=[type(record).__name__ for record, _ in BY_HAND])
def test_messages_are_those_that_one_writes_by_hand(record: Any, message: Message) -> None:
    assert encode(record) == message
    assert decode(type(record), message) == record


def test_a_table_is_an_arrow_stream() -> None:
    answer = sae_pb2.FindNeighborsResponse()
    table = pa.table({"feature": [1], "cosine": [0.5]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = sink.getvalue().to_pybytes()
    answer.features.arrow_ipc_stream = stream
    assert SHAPES["actstore_api.v1.Table"].back(answer.features) == table
    assert SHAPES["actstore_api.v1.Table"].out(table).arrow_ipc_stream == stream


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (Positions(), capture_pb2.PositionSelection()),
        (Positions(), capture_pb2.PositionSelection(last=False)),
        (Positions.last(), capture_pb2.PositionSelection(last=True)),
        (Positions.every(4), capture_pb2.PositionSelection(stride=4)),
        (
            Positions.active("sae", 2),
            capture_pb2.PositionSelection(feature=common_pb2.SaeFeature(sae="sae", feature=2)),
        ),
    ],
)
def test_positions_are_one_of_several_kinds(positions: Positions, message: Message) -> None:
    asked = capture_pb2.CaptureSpecification(positions=message)
    assert decode(CaptureSpecification, asked) == CaptureSpecification(positions=positions)


UNREADABLE: list[tuple[type, Message, str, str]] = [
    (GetTextLens, model_pb2.GetTextLensRequest(text=common_pb2.Prompt(text="a")), "model", "a value"),
    (GetTextLens, model_pb2.GetTextLensRequest(model=common_pb2.ModelReference()), "model.name", "a name"),
    (
        GetTextLens,
        model_pb2.GetTextLensRequest(model=common_pb2.ModelReference(name="m"), text=common_pb2.Prompt()),
        "text",
        "text or token_ids",
    ),
    (
        GetTextLens,
        model_pb2.GetTextLensRequest(model=common_pb2.ModelReference(name="m")),
        "text",
        "text or token_ids",
    ),
    (FindNeighbors, sae_pb2.FindNeighborsRequest(sae="sae"), "direction", "feature or vector"),
    (FindNeighbors, sae_pb2.FindNeighborsRequest(feature=1), "sae", "a name"),
    (FindNeighbors, sae_pb2.FindNeighborsRequest(sae="sae", feature=1, side=99), "side", "decoder, encoder"),
    (
        FindFeatures,
        feature_pb2.FindFeaturesRequest(exclude=common_pb2.Exclusion(classes=[0])),
        "exclude",
        "bos, special, sink",
    ),
    (
        RowFilter,
        capture_pb2.RowFilter(column="a", values=[capture_pb2.FilterValue(text="b")]),
        "comparison",
        "==, !=, <, <=, >, >=, in, not in",
    ),
]


@pytest.mark.parametrize(("kind", "message", "field", "allowed"), UNREADABLE)
def test_what_cannot_be_read_says_where_and_what_may_be_there(
    kind: type, message: Message, field: str, allowed: str
) -> None:
    with pytest.raises(Unreadable) as refused:
        decode(kind, message)
    assert (refused.value.field, refused.value.allowed) == (field, allowed)
    assert str(refused.value).startswith(f"{field}: ")


def test_a_word_that_the_contract_does_not_have_is_not_sent() -> None:
    with pytest.raises(Unreadable, match="'sideways' is not an allowed value") as refused:
        encode(FindNeighbors("sae", 1, side="sideways"))  # type: ignore[arg-type]
    error = refused.value
    assert (error.field, error.value, error.allowed) == ("side", "sideways", "decoder, encoder")


def test_a_value_of_no_kind_that_a_union_has_is_not_sent() -> None:
    with pytest.raises(Unreadable, match="feature or vector") as refused:
        encode(FindNeighbors("sae", "seven"))  # type: ignore[arg-type]
    assert (refused.value.field, refused.value.value) == ("direction", "seven")


class Word(str):
    """A text of a type of its own, as numpy's are."""


@pytest.mark.parametrize(
    ("value", "member"), [(Word("x"), "text"), (True, "truth"), (7, "integer"), (0.5, "real")], ids=str
)
def test_a_value_is_of_the_nearest_kind_that_a_union_has(value: Any, member: str) -> None:
    (sent,) = encode(RowFilter("column", "==", (value,))).values
    assert sent.WhichOneof("kind") == member
    assert getattr(sent, member) == value


def test_what_no_message_stands_for_is_no_record() -> None:
    with pytest.raises(TypeError, match="the contract has no message for Positions"):
        encode(Positions())
