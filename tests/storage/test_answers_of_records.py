"""A question's record reaches the answer with all that it says, and the answer's record says all that was found."""

from dataclasses import replace

import pyarrow as pa
import pytest

from actstore_api.records import capture
from actstore_api.records.activation import ReadActivations, ReadTokens, TokenSelection
from actstore_api.records.capture import StartCapture
from actstore_api.records.catalog import GetRun, ListModels, ListRuns, Run
from actstore_api.records.feature import FindFeatures, GetActiveFeatures, ReadFeature, SampleExamples, StatisticBound
from actstore_api.records.norm import FitGrowth, GetNormProfile, GetSeparability
from actstore_api.records.terms import ModelReference, Range, TokenClass
from actstore_storage.answers import Store, answer, is_stored, rows
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import BadRequest
from actstore_storage.features import reader
from actstore_storage.features.sampling import Sample, sample_examples
from actstore_storage.format.specification import Positions, RowFilter, RunRecord
from actstore_storage.registry.models import ModelRecord, list_models, register_model
from actstore_storage.runs.opening import create_run
from actstore_storage.runs.token_filter import TokenFilter
from tests.stored_run import DENSE_SITE, EVERYWHERE, FIRING, MODEL, SAE, TOKEN_TEXTS, StoredRun, plant, write_stored_run

TEXT: frozenset[TokenClass] = frozenset({"bos", "special"})
# Half of a capture's tokens: positions 2 to 4 of sequences 1 to 3, and what a filter calls them.
WHERE = TokenSelection(sequences=Range(1, 4), positions=Range(2, 5), tokens=tuple(range(0, 40, 2)))
FILTER = TokenFilter(first_sequence=1, end_sequence=4, tokens=tuple(range(0, 40, 2)), first_position=2, end_position=5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Holds the run `planted`, and four checkpoints of its model, of which each has norms twice as large."""
    bucket = open_bucket(str(tmp_path_factory.mktemp("store")))
    write_stored_run(bucket)
    for step in range(4):
        write_stored_run(bucket, f"at{step}", revision=f"step{step}", scale=2.0**step)
    return Store(bucket)


@pytest.fixture(scope="module")
def stored() -> StoredRun:
    return plant()


def asked(bucket: Bucket, **specification: object) -> Run:
    """A run of this specification, of which nothing is captured, as the catalog shows it."""
    record = plant().record
    changed = replace(record.specification, **specification)  # type: ignore[arg-type]
    create_run(bucket, replace(record, specification=changed, specification_sha256=changed.sha256))
    run: Run = answer(Store(bucket), GetRun(record.run)).run
    assert answer(Store(bucket), ListRuns()).runs == (run,)
    return run


def test_the_catalog_has_all_that_a_capture_was_asked_for(local_bucket: Bucket) -> None:
    found = asked(
        local_bucket,
        model_revision="step3",
        tokens_field="ids",
        source_field="url",
        row_filters=(RowFilter("language", "in", ("de", "fr")), RowFilter("words", ">=", 9)),
        max_documents=11,
        max_tokens=1234,
        context_length=17,
        prepend_bos=False,
        dtype="bfloat16",
        storage_dtype="float16",
        sequences_per_shard=4,
        sequences_per_batch=3,
        widen_on_overflow=True,
        packing=True,
        positions=Positions("stride", stride=5),
        sink_ratio=12.5,
        rows_of="another",
    )
    record: RunRecord = plant().record
    assert found.specification == capture.CaptureSpecification(
        run="planted",
        model=ModelReference(MODEL, "step3"),
        dataset=capture.DatasetReference(
            "planted-text",
            text_field="text",
            tokens_field="ids",
            source_field="url",
            row_filters=(
                capture.RowFilter("language", "in", ("de", "fr")),
                capture.RowFilter("words", ">=", (9,)),
            ),
            max_documents=11,
            max_tokens=1234,
        ),
        rows_of="another",
        context_length=17,
        prepend_bos=False,
        packing=True,
        dense_sites=record.specification.dense_sites,
        positions=capture.Positions("stride", stride=5),
        norm_sites=record.specification.norm_sites,
        saes=(SAE,),
        sink_ratio=12.5,
        dtype="bfloat16",
        storage_dtype="float16",
        widen_on_overflow=True,
        sequences_per_shard=4,
        sequences_per_batch=3,
    )


def test_a_run_that_looked_for_no_sinks_and_stores_what_it_computes_in_says_so(local_bucket: Bucket) -> None:
    specification = asked(local_bucket).specification
    assert (specification.sink_ratio, specification.storage_dtype) == (0.0, None)


def test_a_model_that_does_not_say_how_its_layers_are_wired(local_bucket: Bucket) -> None:
    record = ModelRecord("of-old", "", "a" * 64, "b" * 64, "gpt2", 3, 8, 2, 40, 16)
    register_model(local_bucket, record, TOKEN_TEXTS)
    register_model(local_bucket, replace(record, name="parallel", block="parallel"), TOKEN_TEXTS)
    models = answer(Store(local_bucket), ListModels()).models
    assert [(model.name, model.block) for model in models] == [("of-old", None), ("parallel", "parallel")]


def test_only_what_a_bucket_knows_by_itself_is_stored() -> None:
    assert is_stored(ListRuns())
    assert is_stored(ReadTokens("planted"))
    assert not is_stored(StartCapture(capture.CaptureSpecification()))


@pytest.mark.parametrize(("where", "keep"), [(None, None), (WHERE, FILTER)])
def test_activations_of_chosen_tokens(where: TokenSelection | None, keep: TokenFilter | None, store: Store) -> None:
    snapshot = store.snapshot("planted")
    question = SampleExamples("planted", SAE, (EVERYWHERE,), k=50, exclude=frozenset(), where=where)
    found = answer(store, question).examples
    expected = sample_examples(snapshot, SAE, EVERYWHERE, Sample("top", k=50), exclude=frozenset(), keep=keep)
    assert found.select(expected.column_names) == expected
    provenance, batches = rows(store, ReadFeature("planted", SAE, EVERYWHERE, exclude=frozenset(), where=where))
    assert pa.Table.from_batches(batches).num_rows == (69 if keep is None else FILTER.mask_of(plant().tokens).sum())
    assert provenance == snapshot.provenance((SAE,))


def test_tokens_are_those_of_every_part_of_the_selection(store: Store, stored: StoredRun) -> None:
    _, batches = rows(store, ReadTokens("planted", WHERE))
    found = pa.Table.from_batches(batches)
    mask = FILTER.mask_of(stored.tokens)
    for name in ("sequence", "position", "token"):
        assert found[name].to_pylist() == getattr(stored.tokens, name)[mask].tolist()


@pytest.mark.parametrize(("sequences", "expected"), [(Range(5), {5, 6}), (Range(2, 4), {2, 3}), (None, set(range(7)))])
def test_sequences_without_an_end_are_all_that_follow(
    sequences: Range | None, expected: set[int], store: Store
) -> None:
    _, batches = rows(store, ReadTokens("planted", TokenSelection(sequences=sequences)))
    assert set(pa.Table.from_batches(batches)["sequence"].to_pylist()) == expected
    if sequences is not None:
        question = GetNormProfile(("planted",), by="token", sequences=sequences)
        assert set(answer(store, question).profile["sequence"].to_pylist()) == expected


def test_one_site_is_in_the_column_activation_and_of_several_each_has_its_own(store: Store) -> None:
    for sites, name in (((DENSE_SITE,), "activation"), ((DENSE_SITE, DENSE_SITE), DENSE_SITE)):
        _, batches = rows(store, ReadActivations("planted", sites))
        assert pa.Table.from_batches(batches).column_names[-1] == name


def test_features_are_those_of_the_bounds_and_in_their_order(store: Store) -> None:
    question = FindFeatures(
        "planted", SAE, (FIRING, EVERYWHERE, 5), (StatisticBound("density", 0.1, None),), "maximum", True, 2, True, TEXT
    )
    found = answer(store, question)
    assert "token_r2" in found.features.column_names
    assert found.features["feature"].to_pylist() == [EVERYWHERE, FIRING]
    assert found.excluded == TEXT


def test_features_that_fire_on_chosen_tokens(store: Store, stored: StoredRun) -> None:
    found = answer(store, GetActiveFeatures("planted", SAE, where=WHERE)).features.to_pylist()
    fires = stored.features[SAE][FILTER.mask_of(stored.tokens)] > 0
    assert {row["feature"]: row["active_tokens"] for row in found} == {
        feature: count for feature, count in enumerate(fires.sum(axis=0)) if count
    }


@pytest.mark.parametrize("axis", ["layer", "checkpoint"])
def test_growth_along_each_axis_is_the_planted_one(axis: str, store: Store) -> None:
    runs = ("planted",) if axis == "layer" else ("at0", "at1", "at2", "at3")
    found = answer(store, FitGrowth(runs, axis=axis, exclude=TEXT, resamples=20, seed=3))  # type: ignore[arg-type]
    assert (found.axis, found.site) == (axis, "resid_post" if axis == "layer" else "resid_post.2")
    assert found.layers == (Range(0, 3) if axis == "layer" else Range(2, 3))
    assert found.rate == pytest.approx(1.5 if axis == "layer" else 2, rel=1e-6)
    assert (found.resamples, found.seed, found.sequences) == (20, 3, 7)
    assert found.rate_interval is not None
    assert found.rate_interval.low <= found.rate * (1 + 1e-6)
    assert found.rate_interval.high >= found.rate * (1 - 1e-6)
    assert found.provenance.run == runs[0]


def test_growth_of_a_named_site_over_training_is_that_sites(store: Store) -> None:
    runs = ("at0", "at1", "at2")
    found = answer(store, FitGrowth(runs, steps=(10, 20, 40), axis="checkpoint", site="resid_post.0", exclude=TEXT))
    assert (found.site, found.layers) == ("resid_post.0", Range(0, 1))
    assert found.points["step"].to_pylist() == [10, 20, 40]


def test_growth_without_resamples_has_no_intervals(store: Store) -> None:
    found = answer(store, FitGrowth(("planted",), resamples=0))
    assert (found.rate_interval, found.curvature_interval, found.sequences) == (None, None, 0)


def test_growth_says_how_the_layers_are_wired_where_that_is_known(local_bucket: Bucket) -> None:
    write_stored_run(local_bucket)
    store = Store(local_bucket)
    assert answer(store, FitGrowth(("planted",), resamples=0)).block is None
    [known] = list_models(local_bucket)
    register_model(local_bucket, replace(known, block="pre_ln"), TOKEN_TEXTS)
    assert answer(store, FitGrowth(("planted",), resamples=0)).block == "pre_ln"


def test_separability_of_chosen_layers(store: Store) -> None:
    found = answer(store, GetSeparability(("at0", "at1"), layers=Range(1, 3), exclude=TEXT))
    assert found.layers == Range(1, 3)
    assert found.cells["layer"].to_pylist() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("question", "field", "value"),
    [
        (GetNormProfile(()), "runs", "none"),
        (FitGrowth(()), "runs", "none"),
        (GetSeparability(()), "runs", "none"),
        (FitGrowth(("planted",), layers=Range(1)), "layers.end", "none"),
        (GetSeparability(("at0", "at1"), layers=Range(1)), "layers.end", "none"),
    ],
)
def test_norms_of_no_run_and_layers_without_an_end_are_refused(
    question: object, field: str, value: str, store: Store
) -> None:
    with pytest.raises(BadRequest) as caught:
        answer(store, question)
    assert (caught.value.details["field"], caught.value.details["value"]) == (field, value)
    assert caught.value.details["allowed"] in ("one run or more", "a layer above the first")


def test_only_a_filter_looks_through_every_activation(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "FILTERED_ENTRIES_MAX", 68)
    question = SampleExamples("planted", SAE, (EVERYWHERE,), exclude=frozenset())
    assert answer(store, question).examples.num_rows == 7
    with pytest.raises(BadRequest) as caught:
        answer(store, replace(question, where=WHERE))
    assert (caught.value.reason, caught.value.details["value"]) == ("LIMIT_EXCEEDED", "69")
    monkeypatch.setattr(reader, "FILTERED_ENTRIES_MAX", 69)
    assert answer(store, replace(question, where=WHERE)).examples.num_rows
