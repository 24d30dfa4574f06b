"""What a capture stores, whatever it batches, packs and selects, against one sequence at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from actstore_api.records.capture import DatasetFiles, Positions
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket, open_files
from actstore_storage.errors import BadRequest
from actstore_storage.format.products import NORM_SKETCHES, NORMS, TOKENS
from actstore_storage.format.sites import Site, parse_site
from actstore_storage.format.tokens import SINK
from actstore_storage.parquet.reading import open_product
from actstore_storage.rows.reading import dense_matrix, read_activations
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.tokens import document_sources, shard_tokens
from actstore_worker.capture.plan import Plan, PlanSettings, plan_capture
from actstore_worker.capture.shards.overflow import OverflowRefused
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.batching import packed, windows
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.datasets.sequences import TokenSequences
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import observe
from tests.capture_requests import capture_request
from tests.capturing import capture_run
from tests.made_models.small_models import BERT, CONTEXT_LENGTH, SAVERS, save_sae

CPU = torch.device("cpu")
SITE, SAE = "resid_post.1", "topk"
SITES = (SITE, "resid_pre.0", "z.1", "z.2.3", "k.1", "q.0.2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    for name, save in {**SAVERS, **BERT}.items():
        save(folder / "models" / name)
    save_sae(folder / "models" / SAE, SAE)
    (folder / "data" / "text").mkdir(parents=True)
    lengths = np.random.default_rng(3).integers(0, 70, 25)
    for number, length in enumerate(lengths):
        (folder / "data" / "text" / f"{number:02}.txt").write_text(
            "The quick brown fox. "[: length % 22] * (length // 9)
        )
    return folder


@dataclass(frozen=True)
class Slowly:
    """Every token's row, of one sequence at a time, without padding: sites [rows, width], features [rows, d_sae]."""

    rows: dict[str, NDArray[np.float32]]
    features: NDArray[np.float32]


def planned(folder: Path, model: str = "gpt2", **options: object) -> Plan:
    request = capture_request(model, "text", run="run", **{"sequences_per_shard": 7, **options})
    return plan_capture(request, ModelCatalog((folder / "models",)), PlanSettings(DatasetPlaces((folder / "data",))))


def slowly(plan: Plan, sites: tuple[str, ...]) -> Slowly:
    specification = plan.record.specification
    model = load_model(
        plan.model_source, dtype=specification.dtype, device=CPU, attention=plan.record.attention_implementation
    )
    found: dict[str, list[NDArray[np.float32]]] = {site: [] for site in sites}
    features = []
    for one in plan.sequences.batches(1):
        ids = torch.from_numpy(one.tokens.astype(np.int64))[None]
        seen = observe(model, ids, None, [parse_site(site) for site in (*sites, SITE)])
        for site in sites:
            found[site].append(padded(model, site, seen[parse_site(site)][0], specification.context_length))
        features += [sae.encode(seen[parse_site(SITE)][0]).numpy() for sae in plan.saes]
    rows = {site: np.concatenate(parts) for site, parts in found.items()}
    return Slowly(rows, np.concatenate(features) if features else np.empty(0, np.float32))


def padded(model: LanguageModel, site: str, rows: torch.Tensor, context_length: int) -> NDArray[np.float32]:
    """Attention weights over the context that a run stores, with zeros where a sequence has no token."""
    if not site.startswith("pattern"):
        return rows.float().numpy()
    heads = model.head_count if site.count(".") == 1 else 1
    weights = rows.float().unflatten(-1, (heads, -1)).numpy()
    return np.pad(weights, ((0, 0), (0, 0), (0, context_length - weights.shape[-1]))).reshape(len(rows), -1)


def captured(folder: Path, bucket: Bucket, **options: object) -> tuple[Plan, Snapshot]:
    plan = planned(folder, **options)
    return plan, capture_run(plan, bucket, CaptureWorker(bucket, CPU))


def stored(snapshot: Snapshot, site: str) -> NDArray[np.float32]:
    batches = list(read_activations(snapshot, site))
    metadata = batches[0].schema.field("activation").metadata
    dtype, width = metadata[b"dtype"].decode(), int(metadata[b"d_model"])
    return np.concatenate([dense_matrix(batch["activation"], dtype, width) for batch in batches])


def stored_features(snapshot: Snapshot, shape: tuple[int, ...]) -> NDArray[np.float32]:
    found, first = np.zeros(shape, np.float32), 0
    for commit in snapshot.commits:
        table = pq.read_table(snapshot.bucket.open(commit.objects[f"features-{SAE}"].key))
        found[table["row"].to_numpy() + first, table["feature"].to_numpy()] = table["activation"].to_numpy()
        first += commit.tokens
    return found


def columns(snapshot: Snapshot) -> dict[str, NDArray[np.int64]]:
    table = pa.concat_tables([shard_tokens(snapshot.bucket, commit) for commit in snapshot.commits])
    return {name: table[name].to_numpy() for name in ("sequence", "position", "document", "token", "flags")}


def check_tokens(plan: Plan, snapshot: Snapshot) -> None:
    found, sequences = columns(snapshot), plan.sequences
    np.testing.assert_array_equal(found["token"], sequences.tokens)
    np.testing.assert_array_equal(found["sequence"], np.repeat(np.arange(len(sequences)), sequences.lengths))
    np.testing.assert_array_equal(found["position"], sequences.positions)
    np.testing.assert_array_equal(found["document"], np.repeat(sequences.documents, sequences.lengths))


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("packing", [False, True])
def test_batches_and_packing_change_nothing(batch: int, packing: bool, folder: Path, local_bucket: Bucket) -> None:
    options = {"dense_sites": SITES, "saes": (SAE,), "sequences_per_batch": batch, "packing": packing}
    plan, snapshot = captured(folder, local_bucket, **options)
    slow = slowly(plan, SITES)
    check_tokens(plan, snapshot)
    for site in SITES:
        np.testing.assert_allclose(stored(snapshot, site), slow.rows[site], atol=5e-5, rtol=1e-4, err_msg=site)
    np.testing.assert_allclose(stored_features(snapshot, slow.features.shape), slow.features, atol=1e-4)
    keys = [commit.objects[NORMS].key for commit in snapshot.commits]
    norms = np.concatenate([pq.read_table(local_bucket.open(key))[SITE].to_numpy() for key in keys])
    np.testing.assert_allclose(norms, np.linalg.norm(slow.rows[SITE], axis=1), rtol=1e-4)


@pytest.mark.parametrize("name", sorted(SAVERS.keys() - {"opt"}))
def test_packed_sequences_do_not_attend_to_each_other(name: str, folder: Path, local_bucket: Bucket) -> None:
    plan, snapshot = captured(folder, local_bucket, model=name, dense_sites=SITES[:5], packing=True)
    longest = plan.sequences.lengths.max()
    assert len(packed(plan.sequences.lengths, CONTEXT_LENGTH)) < len(plan.sequences)
    assert longest <= CONTEXT_LENGTH
    slow = slowly(plan, SITES[:5])
    for site in SITES[:5]:
        np.testing.assert_allclose(stored(snapshot, site), slow.rows[site], atol=5e-5, rtol=1e-4, err_msg=site)


@pytest.mark.parametrize(
    ("name", "sites"), [("opt", (SITE,)), ("bert", (SITE,)), ("gpt2", (SITE, "pattern.1"))], ids=lambda case: str(case)
)
def test_packing_is_refused_where_it_would_show(name: str, sites: tuple[str, ...], folder: Path) -> None:
    with pytest.raises(BadRequest) as refused:
        planned(folder, name, dense_sites=sites, packing=True)
    assert (refused.value.details["field"], refused.value.details["value"]) == ("packing", "True")


def test_documents_keep_their_source_at_little_cost(folder: Path, local_bucket: Bucket) -> None:
    """Files of a text, without those that have no token; repeated for every token, and stored once a row group."""
    _, snapshot = captured(folder, local_bucket)
    documents = sorted(set(columns(snapshot)["document"].tolist()))
    assert 10 < len(documents) < 25
    expected = [{"document": document, "source": f"{document:02}.txt", "row": None} for document in documents]
    assert document_sources(snapshot).to_pylist() == expected
    with open_product(local_bucket, snapshot.commits[0], TOKENS) as file:
        group = file.metadata.row_group(0)
    sources = [group.column(file.schema_arrow.names.index(name)) for name in ("source", "row")]
    assert all("RLE_DICTIONARY" in column.encodings for column in sources)
    assert snapshot.record.document_sources


def test_the_same_files_are_the_same_dataset_on_a_disk_and_in_s3(
    folder: Path, s3_address: str, s3_access: S3Access
) -> None:
    bucket = open_bucket(s3_address, s3_access)
    for path in (folder / "data" / "text").iterdir():
        bucket.put(f"text/{path.name}", path.read_bytes())
    bucket.put("text/picture", b"\xff")
    asked = capture_request("gpt2", "text", run="run", sequences_per_shard=7)
    places = DatasetPlaces((), (open_files(s3_address, s3_access),))
    stored = plan_capture(asked, ModelCatalog((folder / "models",)), PlanSettings(places))
    plan = planned(folder)
    assert stored.record == plan.record
    np.testing.assert_array_equal(stored.sources.source, plan.sources.source)
    assert (stored.dataset_files, plan.dataset_files) == (DatasetFiles(25, 1, ("picture",)), DatasetFiles(25))


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bert"])
def test_attention_weights_and_encoders(name: str, folder: Path, local_bucket: Bucket) -> None:
    """An encoder's tokens see what follows them, so padding must be masked; its sequences close with SEP."""
    sites = ("pattern.1", "pattern.0.2", "v.1", "resid_mid.2", "resid_post.0")
    plan, snapshot = captured(folder, local_bucket, model=name, dense_sites=sites, norm_sites=("resid_post",))
    assert plan.record.attention_implementation == "eager"
    assert plan.record.dense_width("pattern.1") == 4 * CONTEXT_LENGTH
    slow = slowly(plan, sites)
    check_tokens(plan, snapshot)
    for site in sites:
        np.testing.assert_allclose(stored(snapshot, site), slow.rows[site], atol=5e-5, rtol=1e-4, err_msg=site)
    if name == "bert":
        ends = plan.sequences.offsets[1:] - 1
        assert (plan.sequences.tokens[ends] == plan.model.end_id).all()


CHOICES: dict[str, tuple[Positions, Callable[[dict[str, NDArray[np.int64]], Slowly], NDArray[np.bool_]]]] = {
    "last": (Positions("last"), lambda found, _: np.diff(found["sequence"], append=-1) != 0),
    "stride": (Positions("stride", stride=5), lambda found, _: found["position"] % 5 == 0),
    "feature": (Positions("feature", sae=SAE, feature=7), lambda _, slow: slow.features[:, 7] > 0),
}


@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize("packing", [False, True])
def test_rows_of_some_positions_alone(kind: str, packing: bool, folder: Path, local_bucket: Bucket) -> None:
    positions, chosen_by_hand = CHOICES[kind]
    options = {"dense_sites": SITES[:2], "saes": (SAE,), "positions": positions, "packing": packing}
    plan, snapshot = captured(folder, local_bucket, **options)
    slow = slowly(plan, SITES[:2])
    chosen = chosen_by_hand(columns(snapshot), slow)
    assert 0 < chosen.sum() < len(chosen) / 3
    for site in SITES[:2]:
        np.testing.assert_allclose(stored(snapshot, site), slow.rows[site][chosen], atol=5e-5, rtol=1e-4)
    read = pa.Table.from_batches(list(read_activations(snapshot, SITES[:2])))
    np.testing.assert_array_equal(read["token"].to_numpy(), plan.sequences.tokens[chosen])
    np.testing.assert_allclose(stored_features(snapshot, slow.features.shape), slow.features, atol=1e-4)
    assert snapshot.tokens_committed == len(plan.sequences.tokens)


def test_a_random_fraction_is_the_same_for_a_seed(folder: Path, tmp_path: Path) -> None:
    def rows(name: str, seed: int, **options: object) -> list[tuple[int, int]]:
        (tmp_path / name).mkdir()
        positions = Positions("fraction", fraction=0.3, seed=seed)
        options = {"dense_sites": (SITE,), "positions": positions} | options
        _, snapshot = captured(folder, open_bucket(str(tmp_path / name)), **options)
        table = pa.Table.from_batches(list(read_activations(snapshot, SITE)))
        return list(zip(table["sequence"].to_pylist(), table["position"].to_pylist(), strict=True))

    first = rows("a", 0)
    assert rows("b", 0, packing=True, sequences_per_batch=2) == first
    other = rows("c", 1)
    total = len(planned(folder).sequences.tokens)
    assert 0.2 < len(first) / total < 0.4
    assert 0.1 < len(set(first) & set(other)) / len(first) < 0.5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rows_are_stored_in_another_dtype_than_computed(dtype: str, folder: Path, local_bucket: Bucket) -> None:
    plan, snapshot = captured(folder, local_bucket, dense_sites=(SITE,), storage_dtype=dtype)
    expected = torch.from_numpy(slowly(plan, (SITE,)).rows[SITE])
    kind = {"bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    np.testing.assert_allclose(stored(snapshot, SITE), expected.to(kind).float().numpy(), rtol=2**-7)
    assert snapshot.commits[0].widened == {}


def loud(monkeypatch: pytest.MonkeyPatch, sequence: int) -> None:
    """One token's residual becomes larger than float16 holds: the model's own doing, seen at the site."""
    import actstore_worker.capture.shards.shard as capture

    true_visit = capture.visit

    def visit(model, ids, mask, sites, see, positions):
        def louder(site: Site, tensor: torch.Tensor) -> None:
            if str(site) == SITE:
                tensor = tensor.clone()
                tensor[(ids == LOUD_TOKEN)] += torch.tensor(1e5).to(tensor.dtype)
            see(site, tensor)

        return true_visit(model, ids, mask, sites, louder, positions)

    monkeypatch.setattr(capture, "visit", visit)


LOUD_TOKEN = 88  # of the letter x, which the quick brown fox has once in 21 letters


def test_a_value_that_the_dtype_cannot_hold_refuses_the_shard_and_says_where(
    folder: Path, local_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    loud(monkeypatch, 0)
    plan = planned(folder, dense_sites=(SITE, "resid_pre.0"), storage_dtype="float16")
    where = np.flatnonzero(plan.sequences.tokens == LOUD_TOKEN)[0]
    sequence = int(np.searchsorted(plan.sequences.offsets, where, side="right")) - 1
    with pytest.raises(OverflowRefused) as refused:
        capture_run(plan, local_bucket, CaptureWorker(local_bucket, CPU))
    assert refused.value.reason == "VALUE_OVERFLOW"
    assert refused.value.details["field"] == SITE
    assert f"sequence {sequence}, position {plan.sequences.positions[where]}" in refused.value.message
    assert "65504" in refused.value.message
    assert not [key for key in local_bucket.keys("runs/run/data") if f"/{sequence // 7:08d}-" in key]


@pytest.mark.parametrize("widen", [False, True])
def test_norms_of_a_model_that_overflows_float16_are_refused_too(
    folder: Path, local_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, widen: bool
) -> None:
    """No dense site holds its infinities; and no storage dtype would help."""
    loud(monkeypatch, 0)
    plan = planned(folder, dtype="float16", norm_sites=(SITE,), widen_on_overflow=widen)
    with pytest.raises(OverflowRefused, match="an activation overflowed float16") as refused:
        capture_run(plan, local_bucket, CaptureWorker(local_bucket, CPU))
    assert (refused.value.details["field"], refused.value.details["allowed"]) == (SITE, "dtype bfloat16 or float32")


def test_or_widens_that_site_of_that_shard(folder: Path, local_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    loud(monkeypatch, 0)
    options = {"dense_sites": (SITE, "resid_pre.0"), "storage_dtype": "float16", "widen_on_overflow": True}
    plan, snapshot = captured(folder, local_bucket, **options)
    loud_shards = set(
        np.repeat(np.arange(len(plan.sequences)) // 7, plan.sequences.lengths)[
            plan.sequences.tokens == LOUD_TOKEN
        ].tolist()
    )
    widened = {commit.shard for commit in snapshot.commits if commit.widened == {SITE: "float32"}}
    assert widened == loud_shards
    rows = stored(snapshot, SITE)
    assert np.isfinite(rows).all()
    assert (rows[plan.sequences.tokens == LOUD_TOKEN].max(axis=1) > 9e4).all()
    together = pa.Table.from_batches(list(read_activations(snapshot, (SITE, "resid_pre.0"))))
    assert together.schema.field(SITE).metadata[b"dtype"] == b"float32"
    assert together.schema.field("resid_pre.0").metadata[b"dtype"] == b"float16"


def test_sinks_are_flagged_by_the_median_of_their_sequence(folder: Path, local_bucket: Bucket) -> None:
    plan, snapshot = captured(folder, local_bucket, dense_sites=("resid_post",), sink_ratio=1.5)
    slow = slowly(plan, tuple(f"resid_post.{layer}" for layer in range(3)))
    expected = np.zeros(len(plan.sequences.tokens), np.bool_)
    for first, last in zip(plan.sequences.offsets[:-1], plan.sequences.offsets[1:], strict=True):
        for rows in slow.rows.values():
            norms = np.linalg.norm(rows[first:last], axis=1)
            expected[first:last] |= norms > 1.5 * np.median(norms)
    np.testing.assert_array_equal(columns(snapshot)["flags"] & SINK != 0, expected)
    assert 0 < expected.sum() < len(expected)
    flags = columns(snapshot)["flags"]
    assert snapshot.tokens_by_class["sink"] == int(((flags & SINK != 0) & (flags & 3 == 0)).sum())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=30),
    window=st.integers(1, 12),
    batch=st.integers(1, 5),
    row_tokens=st.sampled_from([None, 20, 33]),
)
def test_every_token_is_in_one_batch_and_knows_its_place(
    lengths: list[int], window: int, batch: int, row_tokens: int | None
) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    numbers = np.arange(len(lengths)) + 100
    seen: list[int] = []
    for part in windows(TokenSequences(tokens, offsets, numbers, numbers), window, batch, row_tokens):
        placed = np.zeros(len(part.sequences.tokens), np.int64)
        for one in part.batches:
            assert len(one.ids) <= batch
            assert row_tokens is None or one.ids.shape[1] <= row_tokens
            placed[one.rows] = one.ids[one.inside]
            if one.position_ids is not None:
                np.testing.assert_array_equal(one.position_ids[one.inside], one.sequences.positions)
        np.testing.assert_array_equal(placed, part.sequences.tokens)
        seen += placed.tolist()
    assert seen == tokens.tolist()


@pytest.mark.parametrize("model", ["gpt2", "neox_parallel"])
@pytest.mark.parametrize("per_shard", [1, 7, 40])
def test_sketches_take_about_what_was_estimated(model: str, per_shard: int, folder: Path, local_bucket: Bucket) -> None:
    plan = planned(folder, model, sequences_per_shard=per_shard)
    snapshot = capture_run(plan, local_bucket, CaptureWorker(local_bucket, CPU))
    stored = sum(commit.objects[NORM_SKETCHES].bytes for commit in snapshot.commits)
    assert stored / 1.7 < plan.bytes_by_product[NORM_SKETCHES] < 1.7 * stored
