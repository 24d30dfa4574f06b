"""The page of settings: every variable and key of each process, from the frozen settings that they fill."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from textwrap import dedent

from actstore._transport.access import S3Access as ClientS3Access
from actstore._variables import ClientVariables
from actstore_service.settings import Settings as ServiceSettings
from actstore_storage.settings.described import PREFIX, default_of, fields_of, is_group
from actstore_storage.settings.store import StoreSettings
from actstore_worker.settings import WorkerSettings
from docs.hooks.tables import code, table

# What each process reads. The first that has a setting gives it its text.
READERS = {
    "service": (StoreSettings, ServiceSettings),
    "workers": (StoreSettings, WorkerSettings),
    "client": (ClientVariables,),
}
# The client reads its keys from variables of the same names, and no credentials file.
_OF_CLIENT = {f"{PREFIX}S3_{one.name.upper()}" for one in fields(ClientS3Access)}
# Groups of settings, by the table of the file.
TITLES = {
    "": "Places, addresses and secrets",
    "s3": "An S3 store",
    "limits": "Limits of the service",
    "coordinator": "Limits of captures",
    "planning": "Limits of one capture",
    "datasets": "Limits of datasets",
    "merge": "Limits of merged indexes",
    "patching": "Limits of patching",
    "live": "Limits of live questions",
    "ray": "Limits of the Ray cluster",
}
_HEAD = """# Settings

A process takes each setting from its variable, else from its key in the file, else the default. It reads them once,
when it starts. The file is in TOML: `--config FILE` of `python -m actstore_service` and `python -m actstore_worker`, or
the file that `ACTSTORE_CONFIG` names. One file serves both: each ignores the keys of the other. The heading of each
table below says in which table of the file its keys are.

```toml
store = "s3://activations/lab"

[s3]
endpoint = "store.lab:9000"
credentials_file = "/etc/actstore/keys"

[limits]
grace_seconds = 60
```

An empty variable counts as unset. In a variable, a switch is `0` or `1`, paths are separated by `:`, and other lists
by spaces. A key or an `ACTSTORE_` variable that no process knows is refused, with the closest name that is known; those
that Kubernetes sets for its Services are ignored. `--print-config` prints every setting with its value and its source,
secrets as `***`, and ends.

`actstore up` sets places, addresses and tokens of the processes that it starts, and takes the rest from the file of
`actstore up --config FILE`. The client takes its variables from the environment only.
"""


@dataclass(frozen=True)
class Setting:
    """One line of the page."""

    name: str
    key: str
    readers: tuple[str, ...]
    type: str
    default: str
    meaning: str


def page() -> str:
    """Writes a table for each table of the file."""
    sections = [_HEAD]
    found = list(variables())
    for group in dict.fromkeys((*TITLES, *map(_group, found))):
        own = [one for one in found if _group(one) == group]
        heading = f"\n## {titled(own[0])}{f' [{group}]' if group else ''}\n\n"
        rows = [
            (
                code(one.name),
                code(one.key.rpartition(".")[2]),
                ", ".join(one.readers),
                one.type,
                one.default,
                one.meaning,
            )
            for one in own
        ]
        sections.append(heading + table(("variable", "key", "read by", "type", "default", "meaning"), rows))
    return "".join(sections)


def variables() -> Iterator[Setting]:
    """Yields each setting of any process, those without a group first."""
    found: dict[str, Setting] = {}
    for reader, records in READERS.items():
        for one in (setting for record in records for setting in _described(record)):
            one = one if reader != "client" else replace(one, key="")
            known = found.get(one.name, one)
            if reader not in known.readers:
                found[one.name] = replace(known, readers=(*known.readers, reader))
    yield Setting(
        "ACTSTORE_CONFIG",
        "",
        ("service", "workers"),
        code("str"),
        "none",
        "The TOML file with settings, as `--config`.",
    )
    for name, one in found.items():
        yield replace(one, readers=(*one.readers, "client")) if name in _OF_CLIENT else one


def _described(record: type, above: tuple[str, ...] = ()) -> Iterator[Setting]:
    texts = _texts(record)
    groups = []
    for one, kind in fields_of(record):
        path = (*above, one.name)
        if is_group(kind):
            groups.append((kind, path))
        else:
            variable = PREFIX + "_".join(path).upper()
            yield Setting(variable, ".".join(path), (), _type(one), _default(one), texts.get(one.name, ""))
    for kind, path in groups:
        yield from _described(kind, path)


def titled(one: Setting) -> str:
    """The title of the group of a setting."""
    return TITLES.get(_group(one), f"Settings of {_group(one)}")


def _group(one: Setting) -> str:
    return one.key.rpartition(".")[0]


def _type(field: "Field[object]") -> str:
    kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
    return code(re.sub(r"\b(pathlib|pathlib\._local)\.", "", kind))


def _default(field: "Field[object]") -> str:
    default = default_of(field)
    if default is MISSING:
        return "required"
    if default in (None, "", ()):
        return "none"
    return code(str(default).replace(str(Path.home()), "~"))


def _texts(record: type) -> dict[str, str]:
    """Text of each field: the docstring below it or the comment above it."""
    source = dedent(inspect.getsource(record))
    lines, body = source.splitlines(), ast.parse(source).body[0].body  # type: ignore[attr-defined]
    texts: dict[str, str] = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            texts[node.target.id] = _docstring(after) or _comment(lines, node.lineno)
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
