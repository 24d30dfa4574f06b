"""The two errors for an SAE that is refused, with field, value and what is allowed."""

from actstore_storage.errors import BadRequest


def unsupported(name: str, field: str, value: object, why: str, allowed: object = None) -> BadRequest:
    """For an option, a format or a file that actstore does not support, or that is broken."""
    return BadRequest(
        f"SAE {name!r} cannot be used: {field} is {value}: {why}",
        reason="SAE_UNSUPPORTED",
        field=field,
        value=value,
        allowed=allowed,
    )


def mismatch(name: str, field: str, value: object, allowed: object, why: str) -> BadRequest:
    """For an SAE that is valid but does not fit this model, or whose files do not fit each other."""
    return BadRequest(
        f"SAE {name!r} does not fit: its {field} is {value}, but {why}",
        reason="SAE_MISMATCH",
        field=field,
        value=str(value),
        allowed=allowed,
    )
