"""The two ways in which an SAE is refused, each naming field, value and what is allowed."""

from actstore_storage.errors import BadRequest


def unsupported(name: str, field: str, value: object, why: str, allowed: object = None) -> BadRequest:
    """For an option, a format or a file that actstore does not read, or that is broken."""
    return BadRequest(
        f"SAE {name!r} cannot be used: {field} is {value}: {why}",
        reason="SAE_UNSUPPORTED",
        field=field,
        value=value,
        allowed=allowed,
    )


def mismatch(name: str, field: str, value: object, allowed: object, why: str) -> BadRequest:
    """For an SAE that is fine and does not go with this model, or whose files do not go with each other."""
    return BadRequest(
        f"SAE {name!r} does not fit: its {field} is {value}, but {why}",
        reason="SAE_MISMATCH",
        field=field,
        value=str(value),
        allowed=allowed,
    )
