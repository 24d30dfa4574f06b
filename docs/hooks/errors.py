"""The page of error reasons, from the one table that service, workers and client read."""

from google.rpc.code_pb2 import Code

from actstore._errors import CLASS_OF_KIND
from actstore_api.reasons import REASONS, Kind, Reason
from docs.hooks.tables import code, table

_HEAD = """# Error reasons

Every error has a reason: a stable code that a program can compare (`error.reason`). This page lists each reason with
its cause and what to do about it. The service sends the reason as `google.rpc.ErrorInfo` with the domain `actstore`;
the client raises the class named above each table. All classes derive from `actstore.ActstoreError`.

An error also carries `field`, `value` and `allowed`, if one argument is at fault, and `next_step`, the remedy.

"""


def page() -> str:
    """Writes a section for each error class, with the reasons that raise it."""
    return _HEAD + "\n".join(_section(kind) for kind in Kind if _reasons(kind))


def _section(kind: Kind) -> str:
    rows = [
        (
            f'<span id="{name.lower()}"></span>{code(name)}',
            reason.cause,
            reason.next_step,
            code(Code.Name(reason.status)),
        )
        for name, reason in _reasons(kind).items()
    ]
    title = f"## {CLASS_OF_KIND[kind].__name__}: {kind.value}\n\n"
    return title + table(("reason", "cause", "remedy", "gRPC status"), rows)


def _reasons(kind: Kind) -> dict[str, Reason]:
    return {name: reason for name, reason in REASONS.items() if reason.kind is kind}
