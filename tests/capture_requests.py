"""Captures as they are asked for, said in one line."""

from dataclasses import fields
from typing import Any

from actstore_api.records.capture import CaptureSpecification, DatasetReference
from actstore_api.records.terms import ModelReference

_OF_DATASET = {field.name for field in fields(DatasetReference)}


def capture_request(
    model: str, dataset: str, run: str = "", *, model_revision: str = "", **options: Any
) -> CaptureSpecification:
    """A request for a capture of a model on a dataset, both by name. `options` are of the request or of its dataset."""
    of_dataset = {name: options.pop(name) for name in _OF_DATASET & options.keys()}
    return CaptureSpecification(
        run=run,
        model=ModelReference(model, model_revision),
        dataset=DatasetReference(dataset, **of_dataset),
        **options,
    )
