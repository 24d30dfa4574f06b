"""What is newer than the contract of the last release says its level, so that older parts never ignore it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet

from actstore_api.codec import message_of
from actstore_api.levels import (
    API_LEVEL,
    CLIENT,
    LEVEL,
    OLDEST_LEVEL,
    SINCE,
    TooOldError,
    check_caller,
    headers_of,
    level_needed,
    own_version,
)
from actstore_api.records.capture import CaptureSpecification, DatasetReference, RowFilter, StartCapture
from actstore_api.records.information import GetServiceInfo
from actstore_api.records.norm import GetNormProfile
from actstore_api.records.patching import PromptPair, RunSweep
from actstore_api.records.terms import ModelReference
from actstore_api.verbs import VERBS

BASELINE = Path(__file__).parents[2] / "proto" / "baseline.binpb"
START = StartCapture(
    CaptureSpecification(
        run="run",
        model=ModelReference("model"),
        dataset=DatasetReference("text", row_filters=(RowFilter("column", "==", 1),)),
    )
)


def _released() -> dict[str, DescriptorProto]:
    released = FileDescriptorSet.FromString(BASELINE.read_bytes())
    return {f"{file.package}.{one.name}": one for file in released.file for one in file.message_type}


def _newer(message: Descriptor, released: dict[str, DescriptorProto], seen: set[str]) -> Iterator[str]:
    """The questions, and fields of questions, that the released contract does not have, as `SINCE` names them."""
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    name = message.name.removesuffix("Request")
    known = released.get(message.full_name)
    if known is None:
        yield name
        return
    had = {field.name for field in known.field}
    for field in message.fields:
        if field.name not in had:
            yield f"{name}.{field.name}"
        elif field.message_type is not None:
            yield from _newer(field.message_type, released, seen)


def test_what_is_new_in_the_contract_says_its_level() -> None:
    released, seen = _released(), set[str]()
    newer = {name for verb in VERBS.values() for name in _newer(message_of(verb.question).DESCRIPTOR, released, seen)}
    assert newer - SINCE.keys() == set(), "add them to actstore_api/levels.py with the level of this release"
    assert all(SINCE[name] == API_LEVEL > OLDEST_LEVEL for name in newer)
    assert set(SINCE.values()) <= set(range(OLDEST_LEVEL + 1, API_LEVEL + 1))


def test_a_question_needs_the_level_of_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert level_needed(GetServiceInfo()) == 2
    assert level_needed(START) == OLDEST_LEVEL
    for newer in ("StartCapture", "CaptureSpecification.dataset", "RowFilter", "RowFilter.column"):
        monkeypatch.setattr("actstore_api.levels.SINCE", {newer: 3})
        assert level_needed(START) == 3, newer
    # What has its default is not sent, so that it needs nothing; and what is not sent is not looked for.
    for newer in ("CaptureSpecification.max_tokens", "GetNormProfile"):
        monkeypatch.setattr("actstore_api.levels.SINCE", {newer: 3})
        assert level_needed(START) == OLDEST_LEVEL, newer
    monkeypatch.setattr("actstore_api.levels.SINCE", {"PromptPair.clean": 3, "GetNormProfile.runs": 3})
    assert level_needed(RunSweep(ModelReference("m"), (PromptPair("a", "b", " c", " d"),))) == 3
    assert level_needed(GetNormProfile(("run",))) == 3


def test_a_caller_that_is_too_old_is_told_both_versions() -> None:
    check_caller({}, "service has")
    check_caller(dict(headers_of("python")), "service has")
    for odd in ("", "x", "²", "-1", "9" * 5000):
        check_caller({LEVEL: odd}, "service has")
    with pytest.raises(TooOldError) as refused:
        check_caller({CLIENT: "python/0.0.9", LEVEL: "0"}, "service has")
    assert refused.value.reason == "CLIENT_TOO_OLD"
    assert f"python/0.0.9 has API level 0; the service has version {own_version()}" in str(refused.value)
