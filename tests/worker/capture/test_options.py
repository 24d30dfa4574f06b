"""What a capture is told to store: what is refused, what is filled in, and how many bytes it is said to be."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasketches import kll_floats_sketch

from actstore_storage.errors import BadRequest
from actstore_storage.format.products import NORM_SKETCHES, NORMS, POSITIONS, TOKENS
from actstore_storage.format.sketches import SKETCH_K
from actstore_storage.format.specification import Positions
from actstore_worker.capture.plan import Plan, PlanSettings, plan_capture
from actstore_worker.capture.planning.estimates import sketch_bytes
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.datasets.sequences import TokenSequences
from tests.capture_requests import capture_request
from tests.made_models.small_models import D_MODEL, save_gpt2, save_sae

# Bytes of texts, each of which is a token; with BOS one more.
LENGTHS = (3, 10, 31)
TOKENS_TOTAL = sum(LENGTHS) + len(LENGTHS)
SITE, OTHER = "resid_post.0", "z.1.2"
K = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)  # such small models only wait for their second thread
    folder = tmp_path_factory.mktemp("lab")
    save_gpt2(folder / "models" / "gpt2")
    save_sae(folder / "models" / "topk", "topk", k=K)
    save_sae(folder / "models" / "wide", "standard", d_sae=96)
    save_sae(folder / "models" / "narrow", "jumprelu", d_sae=40)
    (folder / "data" / "text").mkdir(parents=True)
    for number, length in enumerate(LENGTHS):
        (folder / "data" / "text" / f"{number}.txt").write_text("x" * length)
    return folder


def planned(folder: Path, dataset: str = "text", **options: object) -> Plan:
    request = capture_request("gpt2", dataset, **options)
    return plan_capture(request, ModelCatalog((folder / "models",)), PlanSettings(DatasetPlaces((folder / "data",))))


def feature(number: int, sae: str = "topk") -> dict[str, object]:
    return {"saes": ("topk", "narrow"), "positions": Positions("feature", sae=sae, feature=number)}


@pytest.mark.parametrize(
    ("options", "field", "value", "allowed"),
    [
        ({"max_documents": 0}, "dataset.max_documents", "0", "1 or more"),
        ({"text_field": "a", "tokens_field": "b"}, "dataset.tokens_field", "b", "either"),
        ({"sink_ratio": -1.0}, "sink_ratio", "-1.0", "above 1, or 0"),
        ({"sink_ratio": 1.0}, "sink_ratio", "1.0", "above 1, or 0"),
        ({"sink_ratio": float("inf")}, "sink_ratio", "inf", "above 1, or 0"),
        ({"sink_ratio": float("nan")}, "sink_ratio", "nan", "above 1, or 0"),
        ({"positions": Positions("some")}, "positions", "some", "feature"),
        ({"positions": Positions("stride", stride=0)}, "positions.stride", "0", "1 or more"),
        ({"positions": Positions("fraction", fraction=0.0)}, "positions.random.fraction", "0.0", "at most 1"),
        ({"positions": Positions("fraction", fraction=1.01)}, "positions.random.fraction", "1.01", "at most 1"),
        ({"positions": Positions("fraction", fraction=0.5, seed=-1)}, "positions.random.seed", "-1", str(2**64 - 1)),
        (
            {"positions": Positions("fraction", fraction=0.5, seed=2**64)},
            "positions.random.seed",
            str(2**64),
            str(2**64 - 1),
        ),
        (feature(0, "other"), "positions.feature.sae", "other", "narrow, topk"),
        ({"positions": Positions("feature", sae="topk")}, "positions.feature.sae", "topk", "one of the capture's SAEs"),
        (feature(-1), "positions.feature.feature", "-1", "0..63"),
        (feature(64), "positions.feature.feature", "64", "0..63"),
        (feature(40, "narrow"), "positions.feature.feature", "40", "0..39"),
    ],
    ids=str,
)
def test_refusals_name_the_field(
    options: dict[str, object], field: str, value: str, allowed: str, folder: Path
) -> None:
    with pytest.raises(BadRequest) as refused:
        planned(folder, dense_sites=(SITE,), **options)
    assert refused.value.details["field"] == field
    assert refused.value.details["value"] == value
    assert allowed in refused.value.details["allowed"]
    expected = "FEATURE_OUT_OF_RANGE" if field == "positions.feature.feature" else "ARGUMENT_INVALID"
    assert refused.value.reason == expected


@pytest.mark.parametrize(
    "options",
    [
        {"max_documents": 1},
        {"sink_ratio": 1.001},
        {"positions": Positions("stride", stride=1)},
        {"positions": Positions("fraction", fraction=1.0, seed=0)},
        {"positions": Positions("fraction", fraction=1e-9, seed=2**64 - 1)},
        feature(0),
        feature(63),
        feature(39, "narrow"),
    ],
    ids=str,
)
def test_what_lies_at_a_limit_is_within_it(options: dict[str, object], folder: Path) -> None:
    asked = planned(folder, dense_sites=(SITE,), **options).record.specification
    for name, value in options.items():
        if name != "saes":
            assert getattr(asked, name) == value


def test_what_is_not_said_is_filled_in_and_what_does_not_matter_left_out(folder: Path) -> None:
    """So that requests for the same are the same run."""
    plain = planned(folder, dense_sites=(SITE,)).record.specification
    assert (plain.dtype, plain.storage_dtype, plain.text_field, plain.sink_ratio) == ("float32", "", "text", 10.0)
    same = planned(
        folder, dense_sites=(SITE,), dtype="float32", storage_dtype="float32", text_field="text", sink_ratio=10.0
    )
    assert same.record.specification == plain
    half = planned(folder, dtype="bfloat16", storage_dtype="bfloat16", positions=Positions("last"), sink_ratio=0.0)
    asked = half.record.specification
    assert (asked.dtype, asked.storage_dtype, asked.positions, asked.sink_ratio) == ("bfloat16", "", Positions(), None)
    other = planned(folder, dtype="bfloat16", storage_dtype="float32").record.specification
    assert (other.dtype, other.storage_dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize(
    ("positions", "rows"),
    [
        (Positions(), TOKENS_TOTAL),
        (Positions("last"), len(LENGTHS)),
        (Positions("stride", stride=5), 1 + 3 + 7),  # of 4, 11 and 32
        (Positions("fraction", fraction=0.25), TOKENS_TOTAL // 4),
        (Positions("feature", sae="topk", feature=3), 2),  # a twentieth
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("dtype", "storage_dtype", "size"),
    [("", "", 4), ("float16", "", 2), ("", "bfloat16", 2), ("float16", "float32", 4)],
)
def test_dense_rows_are_sized_by_their_number_width_and_dtype(
    positions: Positions, rows: int, dtype: str, storage_dtype: str, size: int, folder: Path
) -> None:
    options = {"saes": ("topk",), "positions": positions, "dtype": dtype, "storage_dtype": storage_dtype}
    sizes = planned(folder, dense_sites=(SITE, OTHER), **options).bytes_by_product
    assert (sizes[SITE], sizes[OTHER]) == (rows * D_MODEL * size, rows * D_MODEL // 4 * size)
    assert sizes.get(POSITIONS) == (None if positions.kind == "all" else rows)


def test_what_is_of_every_token_is_sized_by_tokens(folder: Path) -> None:
    """Two bytes of a token and four of a norm; of a feature that is on, six by row and eight by feature. How many are
    on is known of top-k; of others it is taken to be 64, or all where there are fewer.
    """
    saes = ("topk", "wide", "narrow")
    one, two = (planned(folder, norm_sites=sites, saes=saes).bytes_by_product for sites in ((SITE,), ("resid_post",)))
    for sizes in (one, two):
        assert sizes[TOKENS] == 2 * TOKENS_TOTAL
        for sae, on in zip(saes, (K, 64, 40), strict=True):
            assert sizes[f"features-{sae}"] == 6 * on * TOKENS_TOTAL
            assert sizes[f"index-{sae}"] == 8 * on * TOKENS_TOTAL
        assert POSITIONS not in sizes
    assert two[NORMS] == 3 * one[NORMS]
    assert one[NORMS] % (4 * TOKENS_TOTAL) == 0
    assert one[NORMS] > 0
    assert two[NORM_SKETCHES] > one[NORM_SKETCHES] > 0


def text_of(count: int) -> TokenSequences:
    """One sequence, without a BOS."""
    return TokenSequences(np.ones(count, np.int32), np.array([0, count]), np.zeros(1, np.int64), np.zeros(1, np.int64))


def sketch_size(count: int) -> float:
    """Of what one sketch is said to take, which zstd compresses to four fifths; columns beside it take 200 bytes."""
    return (sketch_bytes(1000, text_of(count), None, 1) / 1000 - 200) / 0.8


@pytest.mark.parametrize("count", [2, 50, SKETCH_K])
def test_a_sketch_of_few_values_is_as_large_as_the_library_makes_it(count: int) -> None:
    sketch = kll_floats_sketch(SKETCH_K)
    sketch.update(np.random.default_rng(0).random(count, np.float32))
    assert sketch_size(count) == pytest.approx(len(sketch.serialize()), abs=0.1)


def test_a_sketch_of_many_values_grows_by_where_another_level_begins() -> None:
    """It keeps between k and 3 k of them, four bytes each."""
    assert 4 * SKETCH_K < sketch_size(2 * SKETCH_K) < sketch_size(1024 * SKETCH_K) < 3 * 4 * SKETCH_K
    assert sketch_size(1024 * SKETCH_K) - sketch_size(2 * SKETCH_K) == pytest.approx(9 * 4, abs=0.1)


def test_sketches_are_of_each_name_shard_and_class_of_tokens() -> None:
    """Text and BOS are sketched apart, and what a shard has none of is not sketched."""
    one = sketch_bytes(1, text_of(90), None, 1)
    assert sketch_bytes(3, text_of(90), None, 1) == pytest.approx(3 * one, abs=3)
    assert sketch_bytes(1, text_of(4 * 90), None, 4) == pytest.approx(4 * one, abs=4)
    assert sketch_bytes(1, text_of(90), 7, 1) == one
    tokens, offsets = np.array([7, 1, 1, 1] * 150, np.int32), np.arange(151) * 4
    tokens[2] = 7  # one that is no sequence's first is none
    begun = TokenSequences(tokens, offsets, np.arange(150), np.arange(150))
    both = [sketch_bytes(1, text_of(count), None, 1) for count in (450, 150)]
    assert sketch_bytes(1, begun, 7, 1) == pytest.approx(sum(both) - 200, abs=1)
    assert sketch_bytes(1, begun, None, 1) == sketch_bytes(1, text_of(600), None, 1)


def test_documents_come_from_the_field_that_was_named(folder: Path) -> None:
    (folder / "data" / "rows.jsonl").write_text(json.dumps({"words": "abc", "ids": [5, 6]}) + "\n")
    for fields, length in (({"text_field": "words"}, 3), ({"tokens_field": "ids"}, 2)):
        plan = planned(folder, dataset="rows.jsonl", prepend_bos=False, **fields)
        asked = plan.record.specification
        assert (asked.text_field, asked.tokens_field) == (fields.get("text_field", ""), fields.get("tokens_field", ""))
        assert len(plan.sequences.tokens) == length


def test_positions_of_no_dense_site_take_nothing(folder: Path) -> None:
    assert POSITIONS not in planned(folder, positions=Positions("stride", stride=2)).bytes_by_product
