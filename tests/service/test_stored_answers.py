"""Every question about stored data over a real socket, against plain numpy over what was planted."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pytest

from actstore_api.v1 import activation_pb2, catalog_pb2, common_pb2, feature_pb2, norm_pb2
from actstore_service.settings import Limits
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.rows.reading import dense_matrix
from tests import stored_run
from tests.service.conftest import Caller, Serve
from tests.stored_run import BOS, DENSE_SITE, FIRING, MODEL, SAE, SPECIAL, StoredRun, write_stored_run

NOTHING_EXCLUDED = common_pb2.Exclusion()
ALL_EXCLUDED = common_pb2.Exclusion(classes=[common_pb2.TOKEN_CLASS_BOS, common_pb2.TOKEN_CLASS_SPECIAL])


def _table(message: common_pb2.Table) -> pa.Table:
    return pa.ipc.open_stream(message.arrow_ipc_stream).read_all()


def _top_request(feature: int, **asked: object) -> feature_pb2.SampleExamplesRequest:
    """A request for the strongest examples of a feature."""
    return feature_pb2.SampleExamplesRequest(run="planted", sae=SAE, features=[feature], **asked)  # type: ignore[arg-type]


def _statistics_request(feature: int, sae: str = SAE, **asked: object) -> feature_pb2.GetFeatureStatisticsRequest:
    return feature_pb2.GetFeatureStatisticsRequest(run="planted", sae=sae, feature=feature, **asked)  # type: ignore[arg-type]


class TestCatalog:
    def test_run(self, call: Caller, stored: StoredRun) -> None:
        run = call("CatalogService", "GetRun", catalog_pb2.GetRunRequest(run="planted")).run
        record = stored.record
        assert (run.name, run.sequences_total, run.tokens_total) == ("planted", 7, 69)
        assert run.tokens_committed == len(stored.tokens.token)
        assert (list(run.dense_sites), list(run.norm_sites)) == ([DENSE_SITE], [f"resid_post.{i}" for i in range(3)])
        assert [(sae.name, sae.site, sae.d_sae) for sae in run.saes] == [(SAE, DENSE_SITE, stored_run.D_SAE)]
        assert (run.n_layers, run.d_model) == (3, 8)
        assert run.specification.model.name == MODEL
        assert run.specification.prepend_bos
        assert not run.specification.dataset.HasField("max_tokens")
        assert run.provenance.specification_sha256 == record.specification_sha256
        assert (run.provenance.shards_committed, run.provenance.shards_total) == (3, 3)
        assert dict(run.provenance.sae_sha256) == {SAE: "d" * 64}
        assert list(call("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest()).runs) == [run]

    def test_a_damaged_run_does_not_hide_the_others(
        self, serve: Serve, connect: Callable[..., Caller], empty_bucket: Bucket
    ) -> None:
        for run in ("sound", "torn"):
            stored_run.write_stored_run(empty_bucket, run)
        empty_bucket.put("runs/torn/run.json", b"{")
        call = connect(serve(bucket=empty_bucket))
        listed = call("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest()).runs
        assert [run.name for run in listed] == ["sound"]
        _, failure = call.failure("CatalogService", "GetRun", catalog_pb2.GetRunRequest(run="torn"))
        assert failure is not None
        assert (failure.reason, failure.details["value"]) == ("OBJECT_CORRUPT", "runs/torn/run.json")

    def test_models_and_saes(self, call: Caller) -> None:
        models = call("CatalogService", "ListModels", catalog_pb2.ListModelsRequest()).models
        assert [(model.name, model.family, model.d_vocab) for model in models] == [(MODEL, "gpt2", 40)]
        saes = call("CatalogService", "ListSaes", catalog_pb2.ListSaesRequest()).saes
        assert [(sae.name, sae.architecture, sae.d_in, sae.model) for sae in saes] == [(SAE, "standard", 8, MODEL)]

    def test_empty_bucket(self, serve: Serve, connect: Callable[..., Caller], empty_bucket: Bucket) -> None:
        call = connect(serve(bucket=empty_bucket))
        assert not call("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest()).runs
        assert not call("CatalogService", "ListModels", catalog_pb2.ListModelsRequest()).models
        assert not call("CatalogService", "ListSaes", catalog_pb2.ListSaesRequest()).saes


class TestActivations:
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_rows_and_bits(
        self, serve: Serve, connect: Callable[..., Caller], empty_bucket: Bucket, dtype: str
    ) -> None:
        stored = write_stored_run(empty_bucket, dtype=dtype)
        call = connect(serve(bucket=empty_bucket))
        site = f"blocks.1.hook_{DENSE_SITE.split('.')[0]}"
        request = activation_pb2.ReadActivationsRequest(run="planted", sites=[site])
        messages = call("ActivationService", "ReadActivations", request)
        assert common_pb2.Dtype.Name(messages[0].provenance.dtype) == f"DTYPE_{dtype.upper()}"
        assert not any(message.HasField("provenance") for message in messages[1:])
        table = pa.concat_tables(_table(message.rows) for message in messages)
        field = table.schema.field("activation")
        assert field.metadata == {b"dtype": dtype.encode(), b"d_model": b"8"}
        assert np.array_equal(dense_matrix(table["activation"], dtype, 8), stored.dense[DENSE_SITE])
        for column in ("sequence", "position", "document", "token", "flags"):
            assert np.array_equal(table[column].to_numpy(), getattr(stored.tokens, column)), column

    def test_tokens_have_their_texts(self, call: Caller, stored: StoredRun) -> None:
        request = activation_pb2.ReadTokensRequest(
            run="planted", where=activation_pb2.TokenSelection(sequences=common_pb2.Range(first=2, end=5))
        )
        messages = call("ActivationService", "ReadTokens", request)
        table = pa.concat_tables(_table(message.rows) for message in messages)
        inside = (stored.tokens.sequence >= 2) & (stored.tokens.sequence < 5)
        assert np.array_equal(table["sequence"].to_numpy(), stored.tokens.sequence[inside])
        assert table["text"].to_pylist() == [stored_run.TOKEN_TEXTS[token] for token in stored.tokens.token[inside]]

    def test_messages_are_bounded(self, serve: Serve, connect: Callable[..., Caller], stored: StoredRun) -> None:
        call = connect(serve(limits=Limits(batch_bytes=400)))
        request = activation_pb2.ReadActivationsRequest(run="planted", sites=[DENSE_SITE])
        parts = [_table(message.rows) for message in call("ActivationService", "ReadActivations", request)]
        assert len(parts) > 5
        assert max(part.nbytes for part in parts) <= 400
        assert pa.concat_tables(parts)["token"].to_pylist() == stored.tokens.token.tolist()

    def test_where_no_row_passes_there_is_provenance(self, call: Caller) -> None:
        chosen = activation_pb2.TokenSelection(documents=[10**6])
        request = activation_pb2.ReadActivationsRequest(run="planted", sites=[DENSE_SITE], where=chosen)
        (message,) = call("ActivationService", "ReadActivations", request)
        assert message.provenance.run == "planted"
        assert not message.HasField("rows") or _table(message.rows).num_rows == 0


class TestFeatures:
    @pytest.mark.parametrize("exclude", [None, NOTHING_EXCLUDED, ALL_EXCLUDED])
    @pytest.mark.parametrize("feature", [FIRING, stored_run.EVERYWHERE, stored_run.BOS_ONLY, stored_run.SILENT])
    def test_top_examples(
        self, call: Caller, stored: StoredRun, feature: int, exclude: common_pb2.Exclusion | None
    ) -> None:
        request = _top_request(feature, k=4, tokens_before=2, tokens_after=1, exclude=exclude)
        answer = call("FeatureService", "SampleExamples", request)
        expected = _top(stored, feature, _excluded_flags(exclude), k=4, before=2, after=1)
        assert _table(answer.examples).select(list(expected[0]) if expected else ["rank"]).to_pylist() == expected
        told = [common_pb2.TOKEN_CLASS_BOS] if exclude is None else list(exclude.classes)
        assert list(answer.excluded) == told
        assert dict(answer.provenance.sae_sha256) == {SAE: "d" * 64}

    @pytest.mark.parametrize("exclude", [None, NOTHING_EXCLUDED, ALL_EXCLUDED])
    @pytest.mark.parametrize("feature", [FIRING, stored_run.BOS_ONLY, stored_run.SILENT])
    def test_statistics(
        self, call: Caller, stored: StoredRun, feature: int, exclude: common_pb2.Exclusion | None
    ) -> None:
        request = _statistics_request(feature, bins=5, exclude=exclude)
        answer = call("FeatureService", "GetFeatureStatistics", request)
        values = stored.features[SAE][stored.rows(_excluded_flags(exclude)), feature]
        active = values[values > 0]
        assert (answer.tokens, answer.active_tokens) == (len(values), len(active))
        assert answer.density == len(active) / len(values)
        histogram = _table(answer.histogram)
        if not len(active):
            assert (answer.maximum, answer.mean_when_active, histogram.num_rows) == (0, 0, 0)
            return
        assert answer.maximum == active.max()
        assert answer.mean_when_active == pytest.approx(active.mean(dtype=np.float64), rel=1e-12)
        edges = np.linspace(0, float(active.max()), 6)
        counts = [int(((active > low) & (active <= high)).sum()) for low, high in pairwise(edges)]
        assert histogram["count"].to_pylist() == counts
        assert np.allclose(histogram["high"].to_numpy(), edges[1:], rtol=1e-6)

    def test_defaults_are_the_documented_ones(self, call: Caller) -> None:
        written_out = _top_request(
            FIRING,
            method=feature_pb2.SAMPLE_METHOD_TOP,
            k=20,
            tokens_before=12,
            tokens_after=6,
            exclude=common_pb2.Exclusion(classes=[common_pb2.TOKEN_CLASS_BOS]),
        )
        left_out = _top_request(FIRING)
        answers = [call("FeatureService", "SampleExamples", request) for request in (written_out, left_out)]
        assert answers[0] == answers[1]
        assert _table(answers[0].examples).num_rows == len(stored_run.LENGTHS)
        bins = call("FeatureService", "GetFeatureStatistics", _statistics_request(FIRING))
        assert _table(bins.histogram).num_rows == 40


class TestNorms:
    @pytest.mark.parametrize("exclude", [None, NOTHING_EXCLUDED, ALL_EXCLUDED])
    def test_profile(self, call: Caller, stored: StoredRun, exclude: common_pb2.Exclusion | None) -> None:
        request = norm_pb2.GetNormProfileRequest(
            runs=["planted"], exclude=exclude, quantiles=norm_pb2.Quantiles(values=[0.1, 0.5])
        )
        profile = _table(call("NormService", "GetNormProfile", request).profile).to_pylist()
        assert [(row["site"], row["layer"]) for row in profile] == [("resid_post", layer) for layer in range(3)]
        for row in profile:
            norms = stored.norms[f"resid_post.{row['layer']}"][stored.rows(_excluded_flags(exclude))].astype(np.float64)
            assert row["tokens"] == len(norms)
            expected = {
                "mean": norms.mean(),
                "standard_deviation": norms.std(),
                "geometric_mean": np.exp(np.log(norms).mean()),
                "minimum": norms.min(),
                "maximum": norms.max(),
                "q0.1": np.quantile(norms, 0.1),
                "q0.5": np.quantile(norms, 0.5),
            }
            assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6)

    def test_growth_is_the_planted_one(self, call: Caller) -> None:
        request = norm_pb2.FitGrowthRequest(runs=["planted"], exclude=ALL_EXCLUDED)
        growth = call("NormService", "FitGrowth", request)
        assert (growth.site, growth.layers.first, growth.layers.end) == ("resid_post", 0, 3)
        assert growth.rate == pytest.approx(stored_run.GROWTH, rel=1e-6)
        assert growth.r_squared == pytest.approx(1, abs=1e-9)
        points = _table(growth.points).to_pylist()
        assert [point["layer"] for point in points] == [0, 1, 2]
        assert [point["ratio"] for point in points] == [
            None,
            pytest.approx(1.5, rel=1e-6),
            pytest.approx(1.5, rel=1e-6),
        ]
        given = common_pb2.Range(first=0, end=3)
        request = norm_pb2.FitGrowthRequest(runs=["planted"], site="resid_post", layers=given, exclude=ALL_EXCLUDED)
        assert call("NormService", "FitGrowth", request) == growth

    def test_a_run_beside_itself_has_one_growth_over_depth_and_none_over_training(self, call: Caller) -> None:
        asked = {"runs": ["planted", "planted"], "steps": [1, 2], "exclude": ALL_EXCLUDED}
        found = call("NormService", "GetSeparability", norm_pb2.GetSeparabilityRequest(**asked))
        assert (found.site, found.layers.end, found.quantity) == ("resid_post", 3, norm_pb2.NORM_QUANTITY_L2)
        assert found.verdict == norm_pb2.SEPARABILITY_VERDICT_SEPARABLE
        shares = (found.layer_share, found.checkpoint_share, found.interaction_share)
        assert shares == pytest.approx((1, 0, 0), abs=1e-9)
        assert (found.explained, found.rank_one, found.miss) == pytest.approx((1, 1, 1))
        cells = _table(found.cells)
        assert cells.column_names == ["layer", "revision", "step", "mean", "fitted", "factor"]
        profile = call(
            "NormService", "GetNormProfile", norm_pb2.GetNormProfileRequest(**asked, quantiles=norm_pb2.Quantiles())
        )
        assert _table(profile.profile)["mean"].to_pylist() == cells["mean"].to_pylist()
        assert _table(profile.profile)["step"].to_pylist() == [1, 2] * 3


REFUSED = [
    ("CatalogService", "GetRun", catalog_pb2.GetRunRequest(run="absent"), "RUN_NOT_FOUND", "run", "absent"),
    ("CatalogService", "GetRun", catalog_pb2.GetRunRequest(run="../planted"), "NAME_INVALID", "run", "../planted"),
    ("CatalogService", "GetRun", catalog_pb2.GetRunRequest(), "NAME_INVALID", "run", ""),
    (
        "ActivationService",
        "ReadActivations",
        activation_pb2.ReadActivationsRequest(run="planted", sites=["resid_post.2"]),
        "SITE_UNKNOWN",
        "site",
        "resid_post.2",
    ),
    (
        "ActivationService",
        "ReadActivations",
        activation_pb2.ReadActivationsRequest(run="absent", sites=[DENSE_SITE]),
        "RUN_NOT_FOUND",
        "run",
        "absent",
    ),
    ("ActivationService", "ReadTokens", activation_pb2.ReadTokensRequest(run="a/b"), "NAME_INVALID", "run", "a/b"),
    (
        "ActivationService",
        "ReadActivations",
        activation_pb2.ReadActivationsRequest(run="planted"),
        "ARGUMENT_INVALID",
        "sites",
        "none",
    ),
    (
        "ActivationService",
        "ReadTokens",
        activation_pb2.ReadTokensRequest(
            run="planted", where=activation_pb2.TokenSelection(sequences=common_pb2.Range(first=5, end=2))
        ),
        "ARGUMENT_INVALID",
        "sequences",
        "5 to 1",
    ),
    (
        "FeatureService",
        "SampleExamples",
        _top_request(12),
        "FEATURE_OUT_OF_RANGE",
        "feature",
        "12",
    ),
    (
        "FeatureService",
        "GetFeatureStatistics",
        _statistics_request(0, sae="absent"),
        "SAE_NOT_FOUND",
        "sae",
        "absent",
    ),
    (
        "FeatureService",
        "SampleExamples",
        _top_request(0, k=0),
        "ARGUMENT_INVALID",
        "k",
        "0",
    ),
    (
        "FeatureService",
        "SampleExamples",
        _top_request(0, k=2**31),
        "LIMIT_EXCEEDED",
        "k",
        str(2**31),
    ),
    (
        "NormService",
        "GetNormProfile",
        norm_pb2.GetNormProfileRequest(runs=["planted"], sites=["resid_pre.0"]),
        "SITE_UNKNOWN",
        "site",
        "resid_pre.0",
    ),
    (
        "NormService",
        "GetNormProfile",
        norm_pb2.GetNormProfileRequest(runs=["planted"], quantiles=norm_pb2.Quantiles(values=[1.5])),
        "ARGUMENT_INVALID",
        "quantiles",
        "1.5",
    ),
    (
        "NormService",
        "GetNormProfile",
        norm_pb2.GetNormProfileRequest(runs=["planted"], exclude=common_pb2.Exclusion(classes=[9])),  # type: ignore[list-item]
        "ARGUMENT_INVALID",
        "exclude",
        "9",
    ),
    (
        "NormService",
        "GetNormProfile",
        norm_pb2.GetNormProfileRequest(runs=["planted"], quantity=99),  # type: ignore[arg-type]
        "ARGUMENT_INVALID",
        "quantity",
        "99",
    ),
    (
        "NormService",
        "FitGrowth",
        norm_pb2.FitGrowthRequest(runs=["planted"], layers=common_pb2.Range(first=0, end=8)),
        "LAYER_OUT_OF_RANGE",
        "layers",
        None,
    ),
    (
        "NormService",
        "FitGrowth",
        norm_pb2.FitGrowthRequest(runs=["planted"], layers=common_pb2.Range(first=2, end=1)),
        "LAYER_OUT_OF_RANGE",
        "layers",
        "2 to 0",
    ),
    (
        "NormService",
        "FitGrowth",
        norm_pb2.FitGrowthRequest(runs=["planted"], quantity=norm_pb2.NORM_QUANTITY_COSINE_TO_NEXT),
        "ARGUMENT_INVALID",
        "quantity",
        "cosine_to_next",
    ),
    (
        "NormService",
        "FitGrowth",
        norm_pb2.FitGrowthRequest(runs=["planted", "planted"]),
        "ARGUMENT_INVALID",
        "runs",
        "2",
    ),
    (
        "NormService",
        "FitGrowth",
        norm_pb2.FitGrowthRequest(runs=["planted"], steps=[1]),
        "ARGUMENT_INVALID",
        "steps",
        None,
    ),
    (
        "NormService",
        "FitGrowth",
        norm_pb2.FitGrowthRequest(
            runs=["planted"] * 3, axis=norm_pb2.GROWTH_AXIS_CHECKPOINT, layers=common_pb2.Range(first=0, end=3)
        ),
        "ARGUMENT_INVALID",
        "layers",
        None,
    ),
    (
        "NormService",
        "GetSeparability",
        norm_pb2.GetSeparabilityRequest(runs=["planted"]),
        "ARGUMENT_INVALID",
        "runs",
        "1",
    ),
    (
        "NormService",
        "GetSeparability",
        norm_pb2.GetSeparabilityRequest(runs=["planted", "absent"]),
        "RUN_NOT_FOUND",
        "run",
        "absent",
    ),
    (
        "NormService",
        "GetNormProfile",
        norm_pb2.GetNormProfileRequest(runs=["planted", "planted"], steps=[1, 1]),
        "ARGUMENT_INVALID",
        "steps",
        None,
    ),
]


@pytest.mark.parametrize(("service", "method", "request_", "reason", "field", "value"), REFUSED)
def test_refusals_name_field_value_and_what_is_allowed(
    call: Caller, service: str, method: str, request_: object, reason: str, field: str, value: str | None
) -> None:
    code, failure = call.failure(service, method, request_)
    assert code is not grpc.StatusCode.INTERNAL
    assert failure is not None
    assert (failure.reason, failure.details["field"]) == (reason, field)
    assert value is None or failure.details["value"] == value
    assert failure.details["allowed"]


def test_a_truncated_object_is_named(serve: Serve, connect: Callable[..., Caller], tmp_path: Path) -> None:
    write_stored_run(open_bucket(str(tmp_path)))
    for path in tmp_path.rglob(f"*{SAE}*.parquet"):
        path.write_bytes(path.read_bytes()[:-100])
    call = connect(serve(bucket=open_bucket(str(tmp_path))))
    request = _top_request(FIRING)
    code, failure = call.failure("FeatureService", "SampleExamples", request)
    assert code is grpc.StatusCode.DATA_LOSS
    assert failure is not None
    assert failure.reason == "OBJECT_CORRUPT"
    assert failure.details["value"].endswith(".parquet")


def test_an_unexpected_error_shows_no_internals(
    serve: Serve,
    connect: Callable[..., Caller],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = open_bucket(str(tmp_path))
    call = connect(serve(bucket=bucket))
    monkeypatch.setattr(type(bucket), "folders", lambda *_: 1 / 0)
    code, failure = call.failure("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest())
    assert code is grpc.StatusCode.INTERNAL
    assert failure is not None
    assert "ZeroDivision" not in failure.message
    request = failure.message.split()[-1]
    assert request in caplog.text
    assert "ZeroDivisionError" in caplog.text


def _excluded_flags(exclude: common_pb2.Exclusion | None) -> int:
    if exclude is None:
        return BOS
    bits = {common_pb2.TOKEN_CLASS_BOS: BOS, common_pb2.TOKEN_CLASS_SPECIAL: SPECIAL}
    return sum(bits[number] for number in exclude.classes)


def _top(
    stored: StoredRun, feature: int, excluded_flags: int, k: int, before: int, after: int
) -> list[dict[str, object]]:
    """The slow obvious way: the best row of every sequence, sorted; windows from the dense matrix."""
    tokens, values = stored.tokens, stored.features[SAE][:, feature]
    candidates = np.flatnonzero(stored.rows(excluded_flags) & (values > 0))
    best: dict[int, int] = {}
    for row in candidates:
        sequence = int(tokens.sequence[row])
        if sequence not in best or values[row] > values[best[sequence]]:
            best[sequence] = int(row)
    chosen = sorted(best.values(), key=lambda row: (-values[row], tokens.sequence[row], tokens.position[row]))[:k]
    return [_example(stored, values, row, rank, before, after) for rank, row in enumerate(chosen, 1)]


def _example(stored: StoredRun, values: np.ndarray, row: int, rank: int, before: int, after: int) -> dict[str, object]:
    tokens = stored.tokens
    window = [
        other
        for other in range(max(0, row - before), min(len(values), row + after + 1))
        if tokens.sequence[other] == tokens.sequence[row]
    ]
    return {
        "rank": rank,
        "activation": float(values[row]),
        "sequence": int(tokens.sequence[row]),
        "position": int(tokens.position[row]),
        "document": int(tokens.document[row]),
        "first_position": int(tokens.position[window[0]]),
        "tokens": tokens.token[window].tolist(),
        "texts": [stored_run.TOKEN_TEXTS[token] for token in tokens.token[window]],
        "activations": values[window].tolist(),
    }
