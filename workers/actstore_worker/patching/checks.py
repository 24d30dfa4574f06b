"""What several parts of a sweep's request are refused for."""

from collections.abc import Sequence

from actstore_storage.errors import BadRequest


def choices(asked: Sequence[str], known: Sequence[str], field: str) -> tuple[str, ...]:
    for choice in asked:
        if choice not in known:
            raise BadRequest(f"{field}: {choice!r} is not known", field=field, value=choice, allowed=known)
    return tuple(dict.fromkeys(asked))


def check_position(position: int, length: int, field: str) -> None:
    if not 0 <= position < length:
        raise BadRequest(
            f"the prompts have no position {position}; they have {length} tokens",
            field=field,
            value=position,
            allowed=f"0..{length - 1}",
        )


def check_count(count: int, most: int, field: str) -> None:
    if not 1 <= count <= most:
        raise BadRequest(
            f"{field}: {count}",
            reason="LIMIT_EXCEEDED" if count else "ARGUMENT_INVALID",
            field=field,
            value=count,
            allowed=f"1..{most}",
        )
