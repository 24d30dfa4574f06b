"""The pages of the contract: every service, method, message, enum and field of proto/, with the comments there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

from actstore_api.bounds import Bound, bound_of, fields_of_questions, full_name
from docs.hooks.tables import code, table

ROOT = Path(__file__).parents[2] / "proto"
PACKAGE = "actstore_api/v1"
# Numbers of fields in descriptors, of which paths of comments are made.
_FILE = {"message": 4, "enum": 5, "service": 6}
_IN_MESSAGE = {"field": 2, "nested": 3, "enum": 4}
_SYNTAX, _METHOD_OF_SERVICE, _VALUE_OF_ENUM = 12, 2, 2


# Fields that mean the same wherever they have no comment of their own.
SHARED_FIELDS = {
    "run": "Name of a run in the store.",
    "sae": "Name of the SAE.",
    "feature": "Index of the feature in its SAE, from 0.",
    "prepend_bos": "Whether a BOS goes in front. Absent: a text gets one if the tokenizer has one, token ids none.",
    "seed": "Seed of the random numbers; the same seed gives the same answer.",
    "n_layers": "Number of layers.",
    "n_heads": "Attention heads of a layer.",
    "d_model": "Width of the residual stream.",
    "d_vocab": "Tokens of the vocabulary.",
    "n_ctx": "Longest sequence of the model, in tokens.",
    "d_in": "Width of the activations that the SAE reads.",
    "d_sae": "Number of features of the SAE.",
    "shards_total": "Shards of the whole run.",
    "shards_committed": "Shards that are committed.",
    "tokens_total": "Tokens of the whole run.",
    "tokens_committed": "Tokens in committed shards.",
    "bytes_committed": "Bytes in committed shards.",
    "weights_sha256": "SHA-256 of the model's weight files.",
    "tokenizer_sha256": "SHA-256 of what the tokenizer does.",
}


@dataclass(frozen=True)
class Documented:
    """A thing of the contract, with its comment and what it is made of."""

    kind: str
    name: str
    comment: str
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = field(default=())


def pages() -> dict[str, str]:
    """Writes a page for each file of the contract.

    Returns:
        Markdown by the file's name without its ending.
    """
    return {Path(file.name).stem: _page(file) for file in described()}


def described() -> list[FileDescriptorProto]:
    """Compiles proto/ and returns its files with their comments, which generated code does not keep."""
    with TemporaryDirectory() as folder:
        target = Path(folder) / "set.binpb"
        names = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).glob("*.proto"))
        well_known = str(files("grpc_tools") / "_proto")
        options = [f"-I{ROOT}", f"-I{well_known}", "--include_source_info", f"--descriptor_set_out={target}"]
        if protoc.main(["protoc", *options, *names]):
            raise RuntimeError("protoc could not read proto/; its message is above")
        return list(FileDescriptorSet.FromString(target.read_bytes()).file)


def documented(file: FileDescriptorProto) -> Iterator[Documented]:
    """Yields every service, message and enum of a file, in its order."""
    comments = _comments(file)
    for number, service in enumerate(file.service):
        path = (_FILE["service"], number)
        rows = [
            (
                code(method.name),
                _stream(method.client_streaming) + _link(method.input_type),
                _stream(method.server_streaming) + _link(method.output_type),
                comments.get((*path, _METHOD_OF_SERVICE, position), ""),
            )
            for position, method in enumerate(service.method)
        ]
        yield Documented(
            "service", service.name, comments.get(path, ""), ("method", "request", "answer", "meaning"), rows
        )
    for number, message in enumerate(file.message_type):
        yield from _messages(message, (_FILE["message"], number), comments)
    for number, enum in enumerate(file.enum_type):
        yield _enum(enum, enum.name, (_FILE["enum"], number), comments)


def _messages(
    message: DescriptorProto, path: tuple[int, ...], comments: dict[tuple[int, ...], str], outer: str = ""
) -> Iterator[Documented]:
    name = outer + message.name
    if not message.options.map_entry:
        rows = [
            (
                code(one.name),
                _type(message, one),
                (comments.get((*path, _IN_MESSAGE["field"], number), "") or _implied(one)) + _bound(name, one),
            )
            for number, one in enumerate(message.field)
        ]
        yield Documented(
            "message", name, comments.get(path, "") or _of_a_method(name), ("field", "type", "meaning"), rows
        )
    for number, nested in enumerate(message.nested_type):
        yield from _messages(nested, (*path, _IN_MESSAGE["nested"], number), comments, f"{name}.")
    for number, enum in enumerate(message.enum_type):
        yield _enum(enum, f"{name}.{enum.name}", (*path, _IN_MESSAGE["enum"], number), comments)


def _enum(
    enum: EnumDescriptorProto, name: str, path: tuple[int, ...], comments: dict[tuple[int, ...], str]
) -> Documented:
    rows = [
        (
            code(value.name),
            str(value.number),
            comments.get((*path, _VALUE_OF_ENUM, position), "") or _word(enum.name, value.name),
        )
        for position, value in enumerate(enum.value)
    ]
    return Documented("enum", name, comments.get(path, ""), ("value", "number", "meaning"), rows)


def _page(file: FileDescriptorProto) -> str:
    head = next(
        (_plain(one.leading_comments) for one in file.source_code_info.location if list(one.path) == [_SYNTAX]), ""
    )
    title = f"# {Path(file.name).name}\n\n{head}\n"
    return title + "".join(f"\n{_section(one)}" for one in documented(file))


def _section(one: Documented) -> str:
    head = f"## {one.kind} {one.name} {{ #{one.name.lower().replace('.', '-')} }}\n\n"
    body = f"{one.comment}\n\n" if one.comment else ""
    return head + body + (table(one.columns, one.rows) if one.rows else "It has no fields.\n")


def _type(message: DescriptorProto, one: FieldDescriptorProto) -> str:
    entries = {f".{nested.name}": nested for nested in message.nested_type if nested.options.map_entry}
    for ending, entry in entries.items():
        if one.type_name.endswith(ending):
            key, value = entry.field
            return f"map of {_plain_type(key)} to {_plain_type(value)}"
    label = "repeated " if one.label == FieldDescriptorProto.LABEL_REPEATED else ""
    return label + ("optional " if one.proto3_optional else "") + _plain_type(one)


def _plain_type(one: FieldDescriptorProto) -> str:
    if one.type_name:
        return _link(one.type_name)
    return code(FieldDescriptorProto.Type.Name(one.type).removeprefix("TYPE_").lower())


def _link(type_name: str) -> str:
    """A link to a type of the contract; the page is found by the file that defines it."""
    name = type_name.removeprefix(".actstore_api.v1.")
    found = _types().get(name)
    return f"[{code(name)}]({found[0]}.md#{name.lower().replace('.', '-')})" if found else code(name)


def _implied(one: FieldDescriptorProto) -> str:
    """What a field without a comment means: as its name everywhere, or as its type."""
    _, comment = _types().get(one.type_name.removeprefix(".actstore_api.v1."), ("", ""))
    return SHARED_FIELDS.get(one.name, "") or comment.partition(". ")[0].replace("\n", " ")


def _bound(message: str, one: FieldDescriptorProto) -> str:
    """What a question may say in the field, as a last sentence; empty where the type or the meaning says it."""
    bound = _bounds().get(f"{message}.{one.name}")
    return f" Bound: {bound}." if bound is not None and str(bound) else ""


@cache
def _bounds() -> dict[str, Bound]:
    """The bounds of the fields of questions, by the names of message and field."""
    return {full_name(field): bound_of(field) for field in fields_of_questions()}


def _word(enum: str, value: str) -> str:
    """An enum's value without a comment means its own name: `SITE_ABLATION_ZERO` is "zero"."""
    prefix = "".join(f"_{letter}" if letter.isupper() else letter for letter in enum).strip("_").upper()
    return value.removeprefix(f"{prefix}_").lower().replace("_", " ").capitalize() + "."


def _of_a_method(name: str) -> str:
    method, _, kind = name.rpartition("Request") if name.endswith("Request") else name.rpartition("Response")
    return f"{'Answer' if name.endswith('Response') else 'Request'} of `{method}`." if method and not kind else ""


@cache
def _types() -> dict[str, tuple[str, str]]:
    """Maps each type of the contract to the page and the comment that it has."""
    found: dict[str, tuple[str, str]] = {}
    for file in described():
        comments, stem = _comments(file), Path(file.name).stem
        for number, enum in enumerate(file.enum_type):
            found[enum.name] = (stem, comments.get((_FILE["enum"], number), ""))
        for number, message in enumerate(file.message_type):
            found[message.name] = (stem, comments.get((_FILE["message"], number), ""))
            names = [one.name for one in message.nested_type] + [one.name for one in message.enum_type]
            found |= {f"{message.name}.{name}": (stem, "") for name in names}
    return found


def _comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    return {
        tuple(one.path): _plain(one.leading_comments or one.trailing_comments) for one in file.source_code_info.location
    }


def _stream(streaming: bool) -> str:
    return "stream of " if streaming else ""


def _plain(comment: str) -> str:
    return "\n".join(line.removeprefix(" ") for line in comment.strip("\n").splitlines()).strip()
