"""Exceptions to the rules of codec: messages that are converted in their own way, and enums with special words."""

from collections.abc import Mapping

import pyarrow as pa

from actstore_api.records.capture import Positions
from actstore_api.shape import Shape
from actstore_api.v1 import capture_pb2, common_pb2


def stream_of(table: pa.Table) -> common_pb2.Table:
    """The message for an Arrow table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return common_pb2.Table(arrow_ipc_stream=sink.getvalue().to_pybytes())


def table_of(message: common_pb2.Table) -> pa.Table:
    """The Arrow table in a message."""
    return pa.ipc.open_stream(message.arrow_ipc_stream).read_all()


def selection_of(positions: Positions) -> capture_pb2.PositionSelection:
    """The message for a selection of positions; the message for all positions is empty."""
    match positions.kind:
        case "last":
            return capture_pb2.PositionSelection(last=True)
        case "stride":
            return capture_pb2.PositionSelection(stride=positions.stride)
        case "fraction":
            random = capture_pb2.RandomFraction(fraction=positions.fraction, seed=positions.seed)
            return capture_pb2.PositionSelection(random=random)
        case "feature":
            feature = common_pb2.SaeFeature(sae=positions.sae, feature=positions.feature)
            return capture_pb2.PositionSelection(feature=feature)
    return capture_pb2.PositionSelection()


def positions_of(message: capture_pb2.PositionSelection) -> Positions:
    """The selection of positions in a message."""
    match message.WhichOneof("kind"):
        case "last":
            return Positions("last" if message.last else "all")
        case "stride":
            return Positions.every(message.stride)
        case "random":
            return Positions.random(message.random.fraction, message.random.seed)
        case "feature":
            return Positions.active(message.feature.sae, message.feature.feature)
    return Positions()


# By the name of the message.
SHAPES: Mapping[str, Shape] = {
    common_pb2.Table.DESCRIPTOR.full_name: Shape(stream_of, table_of),
    capture_pb2.PositionSelection.DESCRIPTOR.full_name: Shape(selection_of, positions_of),
}

# By the name of the enum: a value's name without its prefix, and the word for it.
WORDS: Mapping[str, Mapping[str, str]] = {
    capture_pb2.Comparison.DESCRIPTOR.full_name: {
        "EQUAL": "==",
        "NOT_EQUAL": "!=",
        "LESS": "<",
        "LESS_OR_EQUAL": "<=",
        "GREATER": ">",
        "GREATER_OR_EQUAL": ">=",
        "NOT_IN": "not in",
    },
}
