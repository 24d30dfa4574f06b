"""Classes of tokens, by every set of flags that a token can have."""

import numpy as np
import pytest

from actstore_storage.errors import BadRequest
from actstore_storage.format.tokens import (
    BOS,
    SINK,
    SPECIAL,
    TOKEN_CLASSES,
    class_numbers,
    kept_classes,
    kept_numbers,
    kept_rows,
    numbers_of_names,
    token_classes,
)

# As docs/reference/format.md has them: BOS before special before sink.
EXPECTED = {
    0: "text",
    BOS: "bos",
    SPECIAL: "special",
    SINK: "sink",
    BOS | SPECIAL: "bos",
    BOS | SINK: "bos",
    SPECIAL | SINK: "special",
    BOS | SPECIAL | SINK: "bos",
}
FLAGS = np.array(list(EXPECTED), np.uint8)
NAMES = list(EXPECTED.values())


def test_a_token_is_of_one_class() -> None:
    masks = token_classes(FLAGS)
    assert list(masks) == list(TOKEN_CLASSES)
    assert [[name for name, mask in masks.items() if mask[place]] for place in range(len(FLAGS))] == [
        [name] for name in NAMES
    ]
    assert [TOKEN_CLASSES[number] for number in class_numbers(FLAGS)] == NAMES
    assert numbers_of_names(np.array(NAMES, np.object_)).tolist() == class_numbers(FLAGS).tolist()


@pytest.mark.parametrize("exclude", [set(), {"bos"}, {"special", "sink"}, {"bos", "special", "sink"}])
def test_what_is_left_out_does_not_count(exclude: set[str]) -> None:
    left_out = frozenset(exclude)
    assert kept_rows(FLAGS, left_out).tolist() == [name not in exclude for name in NAMES]
    assert kept_classes(left_out) == tuple(name for name in ("text", "bos", "special", "sink") if name not in exclude)
    assert [TOKEN_CLASSES[number] for number in kept_numbers(left_out)] == list(kept_classes(left_out))


def test_text_cannot_be_left_out_nor_what_is_no_class() -> None:
    with pytest.raises(BadRequest) as caught:
        kept_classes(frozenset({"text", "bos", "pad"}))
    assert caught.value.details == {"field": "exclude", "value": "pad, text", "allowed": "bos, special, sink"}
