"""Messages of rows are made ahead of whoever takes them, in order, and no further than that."""

import threading
from collections.abc import Iterator

import pytest

from actstore_service.row_messages import ahead
from tests.waiting import PATIENCE_SECONDS


def test_items_come_in_order_and_errors_where_they_happened() -> None:
    def items() -> Iterator[int]:
        yield from range(100)
        raise RuntimeError("after a hundred")

    seen = []
    with pytest.raises(RuntimeError, match="after a hundred"):
        seen.extend(ahead(items()))
    assert seen == list(range(100))
    assert list(ahead(iter(range(10)))) == list(range(10))
    assert list(ahead(iter(()))) == []


def test_who_leaves_stops_the_making() -> None:
    made, over = [], threading.Event()

    def items() -> Iterator[int]:
        try:
            for number in range(10_000):
                made.append(number)
                yield number
        finally:
            over.set()

    found = ahead(items())
    assert next(found) == 0
    found.close()
    del found
    assert over.wait(PATIENCE_SECONDS)
    assert len(made) < 10
