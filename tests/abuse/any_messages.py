"""Any message of a question that protobuf decodes: names that exist and names that cannot, extreme numbers, long lists
and texts, numbers of enums that nobody knows, fields of a later contract.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import assume
from hypothesis import strategies as st

from tests.abuse.judging import REQUEST_BYTES

STRANGE_TEXTS = [
    "", " ", "\0", "a\0b", "a\nb", "..", "../..", "/", "/etc/passwd", "~", "a/b", "a//b", "--", "a--b", "-", ".hidden",
    "é" * 64, "é" * 128, "𝄞" * 300, "x" * 128, "x" * 129, "x" * 255, "x" * 256, "x" * 1024, "x" * 5000, "a/" * 500,
    "resid_post." + "9" * 100, "resid_post." + "9" * 4301, "resid_post.-1", "resid_post.00", "resid_post.1.1",
    "resid_post.٣", "blocks.1.hook_resid_post", "z.0.99999999999999999999", "mlp_in.0", "hf:a/b:c", "hf:", "hf:::",
    "hf:a/b:" + "c" * 300, "%s%n", "{0}", "\u202e", "\ufeff", "words.jsonl/x", "<|endoftext|>", "\u2028" * 50,
]  # fmt: skip
# Names that exist, by field, or by message and field. Without them, every question would end at a name.
_SITES = ("resid_post.1", "resid_post", "resid_post.0", "attn_out", "mlp_out.1", "z", "z.0.1", "q.1", "embedding")
_TEXTS = ("the cat sat on", "the dog sat on", " the", " on", "the", "a", "b")
STORED_NAMES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("run", "runs", "rows_of"), ("planted",)),
    **dict.fromkeys(("sae", "saes"), ("planted-sae",)),
    **dict.fromkeys(("site", "sites", "dense_sites", "norm_sites", "receivers"), _SITES),
    "text": _TEXTS,
    "name": ("planted-model", "words.jsonl"),
}
REALS = [0.0, -0.0, 0.5, 1.0, -1.0, 5e-324, 1e-30, 1e30, 1.7e308, -1.7e308, float("inf"), float("-inf"), float("nan")]
FLOAT_MAX = 3.4e38
_SMALL = (0, 1, 2, 3, 5, 7, 15, 16, 17, 100)
_EDGES = tuple(sign * (2**power + more) for power in (8, 15, 16, 31, 32, 53, 63, 64) for more in (-1, 0, 1)
               for sign in (1, -1))  # fmt: skip
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FIRST = ("run", "runs", "sae", "model", "name", "specification", "sweep", "dataset", "text", "texts", "pairs")
# How often a list is repeated: around bounds, and far beyond.
_TIMES = (2, 16, 17, 256, 257, 4097)
# A field that no message of the contract has: number 1000, of bytes.
_LATER_FIELD = b"\xc2\x3e\x05later"

Names = Mapping[str, Sequence[str]]


def any_request(kind: Descriptor, names: Names = STORED_NAMES) -> st.SearchStrategy[bytes]:
    """A question of this kind as bytes on the wire, with names that exist by field."""
    # Made once, not for each question: that takes several times as long as to draw one.
    messages = _any_message(kind, names)

    @st.composite
    def written(draw: st.DrawFn) -> bytes:
        request = draw(messages).SerializeToString() + draw(st.sampled_from([b"", b"", b"", _LATER_FIELD]))
        assume(len(request) < REQUEST_BYTES)
        return request

    return written()


def _any_message(kind: Descriptor, names: Names) -> st.SearchStrategy[Message]:
    make: Any = GetMessageClass(kind)
    fields = {field.name: _any_field(field, names) for field in kind.fields if not field.containing_oneof}
    chosen = [
        st.none() | st.one_of(*(_named(field, _any_field(field, names)) for field in oneof.fields))
        for oneof in kind.oneofs
    ]
    # Without its run, its SAE or its model, no question goes far.
    first = {name: made for name, made in fields.items() if name in _FIRST}
    return st.builds(
        lambda said, members: make(**said, **dict(member for member in members if member is not None)),
        st.fixed_dictionaries(first, optional={name: made for name, made in fields.items() if name not in first}),
        st.tuples(*chosen),
    )


def _named(field: FieldDescriptor, values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    return values.map(lambda value: (field.name, value))


def _any_field(field: FieldDescriptor, names: Names) -> st.SearchStrategy[Any]:
    one = _any_value(field, names)
    if not field.is_repeated:
        return one
    repeated = st.builds(lambda value, times: [value] * times, one, st.sampled_from(_TIMES))
    ascending = st.sampled_from(_TIMES).map(lambda times: [_nth(field, number) for number in range(times)])
    return st.lists(one, max_size=3) | repeated | (ascending if field.message_type is None else st.nothing())


def _nth(field: FieldDescriptor, number: int) -> Any:
    return f"name{number}" if field.type == FieldDescriptor.TYPE_STRING else number


def _any_value(field: FieldDescriptor, names: Names) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return _any_message(field.message_type, names)
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            own = f"{field.containing_type.name}.{field.name}"
            known = st.sampled_from(names.get(own) or names.get(field.name, ("text", "a")))
            # Of several branches, one is drawn with equal chance.
            return known | known | known | st.sampled_from(STRANGE_TEXTS) | st.text(max_size=20)
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return st.sampled_from(REALS) | st.floats()
        case FieldDescriptor.CPPTYPE_FLOAT:
            return st.sampled_from([real for real in REALS if abs(real) < FLOAT_MAX]) | st.floats(width=32)
        case FieldDescriptor.CPPTYPE_ENUM:
            return st.integers(0, len(field.enum_type.values)) | st.sampled_from([-1, 99, 2**31 - 1, -(2**31)])
    low, high = _RANGES[field.cpp_type]
    fitting = [edge for edge in _EDGES if low <= edge <= high]
    return (
        st.sampled_from(_SMALL)
        | st.sampled_from(_SMALL)
        | st.sampled_from(_SMALL)
        | st.sampled_from(fitting)
        | st.integers(low, high)
    )
