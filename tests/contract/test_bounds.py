"""Every field of every question has a bound, and more than it allows is refused before any work."""

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from actstore_api.bounds import (
    BOUNDS,
    INT32_MAX,
    Bound,
    OutOfBoundsError,
    bound_of,
    check_bounds,
    fields_of_questions,
    full_name,
)
from actstore_api.records.capture import CaptureSpecification, DatasetReference, Positions, StartCapture
from actstore_api.records.model import AblateSites
from actstore_api.records.norm import GetNormProfile
from actstore_api.records.patching import PromptPair, RunSweep
from actstore_api.records.terms import ModelReference
from actstore_api.shape import Unreadable
from actstore_api.v1 import activation_pb2, capture_pb2, norm_pb2

FIELDS = {full_name(field): field for field in fields_of_questions()}
TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
WHOLE = (
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_INT32,
)


def test_every_text_and_list_of_every_question_has_a_bound() -> None:
    assert len(FIELDS) > 200
    for name, field in FIELDS.items():
        bound = bound_of(field)
        assert not field.is_repeated or (bound.elements or 0) > 0, name
        assert field.type not in TEXTS or (bound.characters or 0) > 0, name


def test_every_entry_of_the_table_is_of_a_field() -> None:
    names = {field.name for field in FIELDS.values()}
    assert {entry for entry in BOUNDS if entry not in names | set(FIELDS)} == set()


def lists() -> list[str]:
    return [name for name, field in FIELDS.items() if field.is_repeated and field.message_type is None]


@pytest.mark.parametrize("name", lists())
def test_a_list_is_refused_with_both_numbers_from_one_element_too_many(name: str) -> None:
    field = FIELDS[name]
    bound = bound_of(field)
    assert bound.elements is not None
    values = [str(number) for number in range(bound.elements)] if field.type in TEXTS else list(range(bound.elements))
    if field.enum_type is not None:
        values = [0]
    elif field.type not in (*TEXTS, *WHOLE):
        values = [float(number) for number in values]
    message = field.containing_type._concrete_class()
    getattr(message, field.name).extend(values)
    check_bounds(message)
    more = bound.elements + 1 - len(values)
    getattr(message, field.name).extend([values[0]] * more)
    assert refused(message) == ("LIMIT_EXCEEDED", field.name, bound.elements + 1, f"at most {bound.elements}")


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.type in TEXTS])
def test_a_text_is_refused_with_both_numbers_from_one_character_too_many(name: str) -> None:
    field = FIELDS[name]
    most = bound_of(field).characters
    assert most is not None

    def said(text: str) -> Message:
        return field.containing_type._concrete_class(**{field.name: [text] if field.is_repeated else text})

    check_bounds(said("ü" * most))
    told = ("LIMIT_EXCEEDED", field.name, f"{most + 1} characters", f"at most {most} characters")
    assert refused(said("ü" * (most + 1))) == told


MODEL = ModelReference("gpt2")
PROFILE = GetNormProfile(("a",))
EXCESSES = [
    (GetNormProfile(("a",), sites=("b", "c", "b")), "ARGUMENT_INVALID", "sites", "'b'"),
    (GetNormProfile(("a\nb",)), "ARGUMENT_INVALID", "runs", "'a\\nb'"),
    (GetNormProfile(("a",), edges=(0.0, float("nan"))), "ARGUMENT_INVALID", "edges", float("nan")),
    (GetNormProfile(("a",), quantiles=(float("inf"),)), "ARGUMENT_INVALID", "quantiles", float("inf")),
    (StartCapture(CaptureSpecification(positions=Positions.every(2**31))), "LIMIT_EXCEEDED", "positions.stride", 2**31),
    (
        StartCapture(CaptureSpecification(dataset=DatasetReference("d", max_documents=2**63))),
        "LIMIT_EXCEEDED", "dataset.max_documents", 2**63,
    ),
    (AblateSites(MODEL, ("a", "b" * (1 << 20) + "c")), "LIMIT_EXCEEDED", "texts[1]", f"{(1 << 20) + 1} characters"),
    (RunSweep(MODEL, (PromptPair("a", "b", "c", "d"),), layers=(3, 4, 3)), "ARGUMENT_INVALID", "layers", "3"),
]  # fmt: skip


@pytest.mark.parametrize(("question", "reason", "field", "value"), EXCESSES)
def test_what_is_refused_is_named_as_its_record_names_it(
    question: object, reason: str, field: str, value: object
) -> None:
    found = refused(question)
    assert (found[0], found[1], repr(found[2])) == (reason, field, repr(value))


def test_what_is_said_within_a_list_is_named_by_its_place() -> None:
    filters = [capture_pb2.RowFilter(column="a"), capture_pb2.RowFilter(column="b" * 256)]
    message = capture_pb2.DatasetReference(name="d", row_filters=filters)
    assert refused(message)[1] == "row_filters[1].column"


def test_a_field_without_an_entry_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore_api.bounds.BOUNDS", {"runs": Bound(characters=3)})
    bound_of.cache_clear()
    try:
        with pytest.raises(LookupError, match=r"GetNormProfileRequest.runs .* elements"):
            check_bounds(norm_pb2.GetNormProfileRequest(runs=["a"]))
        with pytest.raises(LookupError, match=r"ReadTokensRequest.run .* characters"):
            check_bounds(activation_pb2.ReadTokensRequest(run="a"))
    finally:
        bound_of.cache_clear()


def test_a_number_with_the_name_of_a_list_has_the_bound_of_numbers() -> None:
    assert bound_of(FIELDS["StoredSample.tokens"]) == Bound(most=INT32_MAX)
    assert bound_of(FIELDS["GetInductionScoresRequest.texts"]) == Bound(most=INT32_MAX)
    assert str(bound_of(FIELDS["AblateTextRequest.pairs"])) == ""


def test_numbers_have_the_range_of_what_computes_with_them() -> None:
    check_bounds(StartCapture(CaptureSpecification(positions=Positions.every(INT32_MAX))))
    check_bounds(StartCapture(CaptureSpecification(positions=Positions.random(0.5, seed=2**64 - 1))))


def refused(question: object) -> tuple[str, str, object, str]:
    with pytest.raises(Unreadable) as caught:
        check_bounds(question)
    assert isinstance(caught.value, OutOfBoundsError) == (caught.value.reason == "LIMIT_EXCEEDED")
    return caught.value.reason, caught.value.field, caught.value.value, caught.value.allowed
