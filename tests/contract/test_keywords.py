"""Keywords of a record are its fields, and of their types."""

from typing import Any, get_type_hints

import pytest

from actstore._runs.specification import CaptureOptions, specification
from actstore_api.records.capture import (
    CaptureSpecification,
    DatasetKeywords,
    DatasetReference,
    SpecificationKeywords,
)

RECORDS = {DatasetKeywords: DatasetReference, SpecificationKeywords: CaptureSpecification}
# Of each type one that is no default, but for None of what may be None.
VALUES: dict[Any, Any] = {str: "else", bool: True, int | None: 3, float | None: 0.5}


@pytest.mark.parametrize("keywords", RECORDS)
def test_keywords_are_fields(keywords: type[Any]) -> None:
    fields = get_type_hints(RECORDS[keywords])
    assert {name: fields[name] for name in get_type_hints(keywords)} == get_type_hints(keywords)


@pytest.mark.parametrize("keywords", RECORDS)
def test_a_capture_takes_each(keywords: type[Any]) -> None:
    types = get_type_hints(keywords)
    assert types.keys() <= CaptureOptions.__annotations__.keys()
    given: Any = {name: VALUES[types[name]] for name in types}
    asked = specification("model", "data.jsonl", **given)
    record = asked if keywords is SpecificationKeywords else asked.dataset
    assert {name: getattr(record, name) for name in given} == given
