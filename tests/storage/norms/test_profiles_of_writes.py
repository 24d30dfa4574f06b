"""Profiles of what sublayers write into the stream, of planted norms and cosines, against a look at every token."""

from dataclasses import replace

import numpy as np
import pytest

from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.norm_columns import SIGNED, columns_beside
from actstore_storage.norms.profile import ProfileQuestion, norm_profile
from actstore_storage.norms.rows import KeptTokens
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.shard_writer import ShardWriter
from actstore_storage.runs.snapshot import Snapshot
from tests.storage.random_run import RandomRun, begin, make_run

LAYERS = (0, 1, 2)
KINDS = ("resid_pre", "attn_out")
SITES = tuple(f"{kind}.{layer}" for layer in LAYERS for kind in KINDS)
COLUMNS = columns_beside(SITES, KINDS)


def made() -> tuple[RandomRun, dict[str, np.ndarray]]:
    """A run with norms of the stream and of what attention writes; and the columns that are stored beside them."""
    run, rng = make_run(5, sequences=8, longest=9), np.random.default_rng(5)
    specification = replace(run.record.specification, norm_sites=SITES)
    record = replace(run.record, specification=specification, specification_sha256=specification.sha256)
    rows = len(run.tokens.token)
    norms = {site: rng.lognormal(size=rows).astype(np.float32) for site in SITES}
    beside = {
        column.name: (rng.uniform(-1, 1, rows) if "cosine" in column.name else norms[str(column.site)] / 2).astype(
            np.float32
        )
        for column in COLUMNS
    }
    return replace(run, record=record, norms=norms), beside


RUN, BESIDE = made()


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    bucket = open_bucket(str(tmp_path_factory.mktemp("store")))
    begin(bucket, RUN.record)
    for shard in range(RUN.record.shards_total):
        held = RUN.record.shard_sequences(shard)
        chosen = np.isin(RUN.tokens.sequence, held)
        tokens, dense, norms, features = RUN.part(chosen)
        sources = RUN.sources.take(tokens.document)
        with ShardWriter(bucket, RUN.record, shard, "attempt", columns=COLUMNS, sources=sources) as writer:
            writer.add(tokens, dense, norms | {name: values[chosen] for name, values in BESIDE.items()}, features)
            assert writer.commit()
    return open_run(bucket, "run")


def slow_values(quantity: str, layer: int) -> np.ndarray:
    """Of each token: by the sides of the triangle of stream, write and their sum."""
    stream, write = (RUN.norms[f"{kind}.{layer}"].astype(np.float64) for kind in KINDS)
    cosine = BESIDE[f"cosine_to_stream.attn_out.{layer}"].astype(np.float64)
    if quantity == "cosine_to_stream":
        return cosine
    if quantity == "share_of_stream":
        return write / stream
    if quantity == "standard_deviation":
        return write / 2 / np.sqrt(8)
    along, across = stream + write * cosine, write * np.sqrt(1 - cosine**2)
    return np.hypot(along, across) / stream - 1


def slow_labels(by: str) -> np.ndarray:
    flags = RUN.tokens.flags
    if by == "token_class":
        return np.select([flags & 1 > 0, flags & 2 > 0], ["bos", "special"], "text")
    return getattr(RUN.tokens, by) if by in ("position", "document") else np.zeros(len(flags))


@pytest.mark.parametrize("by", ["layer", "site", "token_class", "position", "document"])
@pytest.mark.parametrize("quantity", ["cosine_to_stream", "share_of_stream", "relative_increase", "standard_deviation"])
def test_profiles_are_numpys_over_all_tokens(quantity: str, by: str, snapshot: Snapshot) -> None:
    places = [LAYERS] if by == "site" else [(layer,) for layer in LAYERS]
    for kept, counts in (
        (KeptTokens(), RUN.kept(frozenset({"bos"}))),
        (KeptTokens(frozenset({"special"}), True), RUN.kept(frozenset({"special"})) & (RUN.tokens.position > 0)),
    ):
        rows = norm_profile(snapshot, ProfileQuestion(("attn_out",), quantity, by, (0, 0.5, 0.5), kept)).to_pylist()
        labels = slow_labels(by)
        groups = [(layers, label) for layers in places for label in dict.fromkeys(sorted(labels[counts].tolist()))]
        assert len(rows) == len(groups)
        for row in rows:
            layers = LAYERS if by == "site" else (row["layer"],)
            here = counts & (labels == row[by]) if by in ("token_class", "position", "document") else counts
            values = np.concatenate([slow_values(quantity, layer)[here] for layer in layers])
            assert (row["site"], row["tokens"]) == ("attn_out", len(values))
            assert ("layer" in row) == (by != "site")
            expected = values.mean(), values.std(), values.min(), values.max(), values.min(), np.median(values)
            names = ("mean", "standard_deviation", "minimum", "maximum", "q0", "q0.5")
            assert [row[name] for name in names] == pytest.approx(list(expected), rel=1e-4, abs=1e-6)
            if quantity in SIGNED:
                assert row["geometric_mean"] is None
            else:
                assert row["geometric_mean"] == pytest.approx(np.exp(np.log(values).mean()), rel=1e-5)
            if quantity == "relative_increase":
                share = np.concatenate([slow_values("share_of_stream", layer)[here] for layer in layers])
                assert row["bound"] == pytest.approx(share.mean(), rel=1e-5)
            else:
                assert "bound" not in row
            assert row.get("non_finite", 0) == 0
            assert ("non_finite" in row) == (by in ("layer", "site"))
            if by == "document":
                assert (row["source"], row["row"]) == (
                    f"file-{row['document'] % 3}",
                    row["document"] if row["document"] % 4 else None,
                )
