"""The page of settings: every environment variable, and every limit, from the frozen settings that they fill."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from textwrap import dedent

from actstore._transport.access import S3Access as ClientS3Access
from actstore_service.settings import Limits
from actstore_service.settings import Settings as ServiceSettings
from actstore_storage.bucket.access import S3Access
from actstore_worker.capture.limits import CoordinatorLimits, MergeLimits
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.settings import RayLimits, WorkerSettings
from docs.hooks.tables import code, table

ROOT = Path(__file__).parents[2]
# Where each process reads its environment. The client's stack also sets variables, which is not reading them.
READERS = {
    "client": ("client/actstore/_connect.py", "client/actstore/_cli"),
    "service": ("services/actstore_service",),
    "workers": ("workers/actstore_worker",),
}
# Limits are fields of frozen settings. A deployment that embeds a process sets them; no variable does.
LIMITS = {
    "Service": Limits,
    "Ray": RayLimits,
    "Captures": CoordinatorLimits,
    "Merged indexes": MergeLimits,
    "Live questions": LiveLimits,
    "Patching": PatchingLimits,
}
# Variables whose name is not the name of a field, and those that only the client reads.
_FIELDS = {"ACTSTORE_MERGE_PARTS": (MergeLimits, "parts")}
_TEXTS = {
    "ACTSTORE_ADDRESS": (
        "str",
        "the stack that runs here",
        "Address that `actstore.connect()` and the command use: `host:port` of a service, a folder, or "
        "`s3://bucket/prefix`.",
    ),
    "ACTSTORE_TLS": (
        "bool",
        "none",
        "Whether the client encrypts its connection to a service (1) or not (0), if `connect` gets no `tls`. "
        "Without either, a token is sent to this machine only. It does not count for a stack that runs here: that has "
        "no TLS.",
    ),
    "ACTSTORE_ROOT_CERTIFICATES": (
        "str",
        "those of gRPC",
        "File with the root certificates, in PEM form, with which the client verifies a service over TLS. For a lab "
        "with a certificate authority of its own. It does not count for a stack that runs here.",
    ),
}
_HEAD = """# Settings

Each process reads its environment once, when it starts. This page lists every variable with its type, its default and
its meaning, and below that every limit. An empty variable counts as unset. `actstore up` sets the variables of the
processes that it starts; only a deployment by hand sets them itself ([how to deploy](../how-to/deploy.md)).

## Environment variables

"""
_LIMITS_HEAD = """
## Limits

A limit is a field of the frozen settings of a process, and not a variable: who starts the process from Python passes
another value. Each request beyond a limit is refused with `LIMIT_EXCEEDED`, or waits, as the meaning says.
"""


@dataclass(frozen=True)
class Setting:
    """One line of the page."""

    name: str
    readers: tuple[str, ...]
    type: str
    default: str
    meaning: str


def page() -> str:
    """Writes the table of variables and a table for each group of limits."""
    rows = [(code(one.name), ", ".join(one.readers), one.type, one.default, one.meaning) for one in variables()]
    sections = [_HEAD, table(("variable", "read by", "type", "default", "meaning"), rows), _LIMITS_HEAD]
    for title, limits in LIMITS.items():
        lines = [(code(one.name), one.type, one.default, one.meaning) for one in settings_of(limits)]
        sections.append(f"\n### {title}\n\n" + table(("limit", "type", "default", "meaning"), lines))
    return "".join(sections)


def variables() -> Iterator[Setting]:
    """Yields each variable that any process reads, in alphabetical order."""
    readers: dict[str, list[str]] = {}
    for reader, places in READERS.items():
        for name in sorted(set().union(*(_named_below(ROOT / place) for place in places))):
            readers.setdefault(name, []).append(reader)
    for name in sorted(readers):
        yield _variable(name, tuple(readers[name]))


def settings_of(record: type) -> Iterator[Setting]:
    """Yields each field of frozen settings that is a plain value."""
    texts = _texts(record)
    for field in fields(record):
        if not is_dataclass(field.type) and not inspect.isclass(field.default_factory):
            yield Setting(field.name, (), _type(field), _default(field), texts.get(field.name, ""))


def _named_below(place: Path) -> set[str]:
    """Names of variables in strings of code; S3's are made from the fields of `S3Access`, the client's of its own."""
    found: set[str] = set()
    for path in [place] if place.is_file() else place.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"\bACTSTORE_[A-Z0-9_]*[A-Z0-9]\b", node.value))
    if any(name.startswith("ACTSTORE_S3_") for name in found):
        access = ClientS3Access if "client" in place.parts else S3Access
        found |= {f"ACTSTORE_S3_{field.name.upper()}" for field in fields(access)}
    return found


def _variable(name: str, readers: tuple[str, ...]) -> Setting:
    if name in _TEXTS:
        return Setting(name, readers, *_TEXTS[name])
    record, field = _FIELDS.get(name) or _field_of(name)
    found = next((one for one in settings_of(record) if one.name == field), Setting(name, readers, "", "", ""))
    return Setting(name, readers, found.type, found.default, found.meaning)


def _field_of(name: str) -> tuple[type, str]:
    """The settings of the service come first, then those of the workers, which have more variables."""
    field = name.removeprefix("ACTSTORE_").lower()
    if field.startswith("s3_"):
        return S3Access, field.removeprefix("s3_")
    return (ServiceSettings if field in {one.name for one in fields(ServiceSettings)} else WorkerSettings), field


def _type(field: "Field[object]") -> str:
    kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
    return code(re.sub(r"\b(pathlib|pathlib\._local)\.", "", kind))


def _default(field: "Field[object]") -> str:
    if field.default is MISSING:
        return "required"
    if field.default in (None, "", ()):
        return "none"
    return code(str(field.default).replace(str(Path.home()), "~"))


def _texts(record: type) -> dict[str, str]:
    """Text of each field: the docstring below it or the comment above it; neighbouring limits may share one."""
    source = dedent(inspect.getsource(record))
    lines, body = source.splitlines(), ast.parse(source).body[0].body  # type: ignore[attr-defined]
    texts: dict[str, str] = {}
    last = ""
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            shared = last if record.__name__.endswith("Limits") else ""
            last = _docstring(after) or _comment(lines, node.lineno) or shared
            texts[node.target.id] = last
    return texts


def _docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def _comment(lines: list[str], number: int) -> str:
    found: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("#"):
            break
        found.insert(0, line.strip().lstrip("# "))
    return " ".join(found)
