"""Every stored question, asked of a service over a socket, of that service through an AsyncLab, and of the bucket by
itself: the same answer to the bit.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import actstore
from actstore import ActstoreError, BadRequest, Lab, Where
from actstore_api.records.activation import ReadTokens, TokenSelection
from actstore_api.records.feature import (
    FindFeatures,
    GetActiveFeatures,
    GetCofiringFeatures,
    GetFeatureStatistics,
    ReadFeature,
    SampleExamples,
)
from actstore_api.records.terms import Range
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket
from tests.client.lab.doors import OPEN_TO_ALL, awaited
from tests.stored_run import BOS_ONLY, EVERYWHERE, FIRING, SAE, SILENT


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    """One service for all of these questions, which change nothing."""
    service = Service(open_bucket(str(store)), Settings(**OPEN_TO_ALL))
    yield service.address
    service.stop()


@pytest.fixture(scope="module")
def remote(address: str) -> Iterator[Lab]:
    with actstore.connect(address) as lab:
        yield lab


@pytest.fixture(scope="module")
def asked_in_a_loop(address: str) -> Iterator[Lab]:
    with awaited(actstore.connect_async(address)) as lab:
        yield lab


@pytest.fixture(scope="module")
def direct(store: Path) -> Iterator[Lab]:
    with actstore.connect(store) as lab:
        yield lab


RUNS = ("planted", "bfloat16", "float16", "partial")
QUESTIONS: dict[str, Callable[[actstore.Run], Any]] = {
    "norms": lambda run: run.norms(),
    "norms by default": lambda run: run.norms(exclude=None),
    "norms of all tokens": lambda run: run.norms(exclude=()),
    "norms without special tokens": lambda run: run.norms(exclude=("bos", "special")),
    "norms of a kind": lambda run: run.norms("resid_post", quantiles=(0.0, 0.1, 1.0)),
    "norms of a site": lambda run: run.norms(["resid_post.2"], by="layer"),
    "norms from statistics": lambda run: run.norms(quantiles=()),
    "norms by token class": lambda run: run.norms(exclude=(), by="token_class"),
    "norms by position": lambda run: run.norms(by="position"),
    "norms by document": lambda run: run.norms(exclude="position_0", by="document", quantiles=()),
    "norms of a kind together": lambda run: run.norms("resid_post", by="site", quantity="rms"),
    "deviations": lambda run: run.norms(quantity="standard_deviation", exclude=("bos", "position_0")),
    "norms by token": lambda run: run.token_norms(range(1, 7), exclude=()),
    "exact norms": lambda run: run.norms(exact=True, histogram=3),
    "histograms": lambda run: run.norms(quantity="centred_l2", histogram=5),
    "histograms between edges": lambda run: run.norms("resid_post.1", histogram=[0.5, 2, 10]),
    "growth": lambda run: run.fit_growth(),
    "growth without intervals": lambda run: run.fit_growth(exclude="special", resamples=0),
    "growth by another seed": lambda run: run.fit_growth(resamples=50, seed=9),
    "growth of some layers": lambda run: run.fit_growth("resid_post", layers=range(3), exclude=()),
    "examples": lambda run: run.feature(SAE, FIRING).top(),
    "examples in short": lambda run: run.feature(SAE, FIRING).top(3, tokens_before=0, tokens_after=1),
    "examples on BOS": lambda run: run.feature(SAE, BOS_ONLY).top(exclude=()),
    "examples by default": lambda run: run.feature(SAE, BOS_ONLY).top(exclude=None),
    "no examples": lambda run: run.feature(SAE, SILENT).top(),
    "examples of some tokens": lambda run: run.feature(SAE, EVERYWHERE).top(
        5, where=Where(sequences=range(1, 5), positions=slice(2, None), documents=[1, 2])
    ),
    "uniform": lambda run: run.feature(SAE, FIRING).uniform(5),
    "uniform with a seed": lambda run: run.feature(SAE, FIRING).uniform(5, seed=7, exclude=()),
    "uniform over rank": lambda run: run.feature(SAE, FIRING).uniform(4, over="rank", tokens_before=1),
    "uniform where it fires": lambda run: run.feature(SAE, FIRING).uniform(3, "activating", threshold=2.0, seed=1),
    "uniform over positions": lambda run: run.feature(SAE, FIRING).uniform(6, over="positions", seed=3),
    "quantiles": lambda run: run.feature(SAE, FIRING).quantiles(4, 1, seed=2, where=Where(positions=range(1, 12))),
    "no quantiles": lambda run: run.feature(SAE, SILENT).quantiles(),
    "above": lambda run: run.feature(SAE, FIRING).above(3.0),
    "above nothing": lambda run: run.feature(SAE, EVERYWHERE).above(where=Where(tokens=[2, 5, 8]), exclude=()),
    "above everything": lambda run: run.feature(SAE, FIRING).above(1e9),
    "token_r2": lambda run: run.feature(SAE, FIRING).token_r2(),
    "cofiring": lambda run: run.feature(SAE, FIRING).cofiring(3, least_tokens=1, exclude=()),
    "table": lambda run: run.features(SAE).statistics(),
    "table of some": lambda run: run.features(SAE).statistics([FIRING, EVERYWHERE], exclude="special"),
    "search": lambda run: run.features(SAE).search(density=(0.01, 0.9), order="maximum", ascending=True, k=3),
    "search by token_r2": lambda run: run.features(SAE).search(token_r2=(None, 1.0), maximum=(0.5, None)),
    "active": lambda run: run.features(SAE).active(Where(documents=[2]), order="lift", exclude=()),
    "active everywhere": lambda run: run.features(SAE).active(k=2),
    "active on a token": lambda run: run.features(SAE).by_token(5),
    "many": lambda run: run.features(SAE).sample([FIRING, SILENT, EVERYWHERE], k=2),
    "many by quantile": lambda run: run.features(SAE).sample([FIRING, BOS_ONLY], "quantile", 1, bins=3, exclude=()),
    "statistics": lambda run: run.feature(SAE, EVERYWHERE).statistics(),
    "statistics in few bins": lambda run: run.feature(SAE, FIRING).statistics(bins=3, exclude=("special",)),
    "statistics of nothing": lambda run: run.feature(SAE, SILENT).statistics(),
    "activations": lambda run: run.activations("resid_post.1"),
    "activations by the long name": lambda run: run.activations("blocks.1.hook_resid_post", range(2, 5)),
    "no activations": lambda run: run.activations("resid_post.1", documents=[10**6]),
    "activations of text": lambda run: run.activations("resid_post.1", exclude=("bos", "special", "sink")),
    "activations of some": lambda run: run.activations(
        "resid_post.1", range(1, 6), positions=range(1, 9), documents=[1, 2, 4], columns=["token", "position"]
    ),
    "activations alone": lambda run: run.activations(["resid_post.1"], positions=slice(3, None), columns=()),
    "activations of tokens": lambda run: run.activations("resid_post.1", tokens=[2, 5, 6, 7]),
    "tokens of some": lambda run: run.tokens(tokens=[2, 3, 4, 5], exclude="bos", positions=range(4)),
    "tokens": lambda run: run.tokens(),
    "tokens from the third sequence on": lambda run: run.tokens(slice(2, None)),
    "no tokens": lambda run: run.tokens(documents=[10**6]),
}


@pytest.fixture(scope="module", params=["remote", "asked_in_a_loop"])
def other(request: pytest.FixtureRequest) -> Lab:
    """Each door but the bucket by itself, with which all of them are compared."""
    found: Lab = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_answers(question: str, name: str, other: Lab, direct: Lab) -> None:
    far, near = (QUESTIONS[question](lab.run(name)) for lab in (other, direct))
    assert type(far) is type(near)
    assert far.to_arrow().schema.equals(near.to_arrow().schema, check_metadata=True)
    assert far.to_arrow().equals(near.to_arrow())
    assert far == near  # excluded, provenance and every number of its own
    assert repr(far) == repr(near)
    assert far._repr_html_() == near._repr_html_()


def test_no_exclusion_given_is_bos_and_an_empty_one_is_none(lab: Lab) -> None:
    run = lab.run("planted")
    feature = run.feature(SAE, BOS_ONLY)
    every = run.features(SAE)
    stored = [feature.top, feature.uniform, feature.quantiles, feature.above, feature.statistics, feature.cofiring]
    asked: list[Callable[..., Any]] = [run.norms, *stored, every.search, every.statistics, every.active]
    assert (feature.page(live=False).excluded, feature.page(live=False, exclude=()).excluded) == (("bos",), ())
    for ask in asked:
        assert ask(exclude=None) == ask() == ask(exclude=("bos",))
        assert (ask(exclude=None).excluded, ask(exclude=()).excluded) == (("bos",), ())
    assert len(feature.top(exclude=None)) == 0 < len(feature.top(exclude=()))


def test_rows_say_what_they_leave_out(lab: Lab) -> None:
    run = lab.run("planted")
    for ask in (run.tokens, lambda **options: run.activations("resid_post.1", **options)):
        assert ask().excluded == ()
        assert ask(exclude="bos").excluded == ("bos",)
        assert ask(exclude=("special", "bos")).excluded == ("bos", "special")
        assert len(ask(exclude="bos").table) < len(ask().table)


def test_sinks_that_nobody_looked_for_are_said_to_be_none(lab: Lab) -> None:
    run = lab.run("planted")
    feature = run.feature(SAE, FIRING)
    asked: list[Callable[..., Any]] = [
        run.norms,
        run.tokens,
        feature.top,
        feature.statistics,
        run.features(SAE).statistics,
    ]
    for ask in asked:
        found = ask(exclude=("bos", "sink"))
        assert found.provenance.sink_ratio == 0
        assert "excluded: bos, sink (no sinks were looked for) · " in repr(found)
        assert "looked for" not in repr(ask(exclude="bos"))


@pytest.mark.parametrize("sequences", [range(0), range(2, 2), range(5, 3), slice(4, 4), range(100, 200)])
@pytest.mark.parametrize("name", RUNS)
def test_a_range_without_sequences_is_refused_by_its_name(name: str, sequences: range | slice, lab: Lab) -> None:
    run = lab.run(name)
    for ask in (run.tokens, lambda chosen: run.activations("resid_post.1", chosen)):
        with pytest.raises(BadRequest) as caught:
            ask(sequences)
        assert caught.value.field == "sequences"
        assert caught.value.value in (repr(sequences), "100 to 199")
    assert len(run.tokens(range(6, 10**6))) == len(run.tokens(slice(6, None)))


@pytest.mark.parametrize("name", RUNS)
def test_no_rows_are_an_empty_table_of_the_same_schema(name: str, lab: Lab) -> None:
    run = lab.run(name)
    for ask in (run.tokens, lambda **chosen: run.activations("resid_post.1", **chosen)):
        empty = ask(documents=[10**6]).table
        assert empty.num_rows == 0
        assert empty.schema.equals(ask().table.schema)


@pytest.mark.parametrize("name", [*RUNS, "empty"])
def test_runs(name: str, remote: Lab, direct: Lab) -> None:
    far, near = remote.run(name), direct.run(name)
    assert far._description == near._description
    assert repr(far) == repr(near)


def test_runs_listed(other: Lab, direct: Lab) -> None:
    assert len(other.runs()) > 0
    assert other.runs() == direct.runs()


@pytest.mark.parametrize("listing", ["models", "saes"])
def test_what_captures_have_loaded(listing: str, other: Lab, direct: Lab) -> None:
    """Without workers a service knows as little of others as a bucket."""
    far, near = getattr(other, listing)(), getattr(direct, listing)()
    assert len(far) > 0
    assert far.table == near.table
    assert {row["available"] for row in far} == {None}
    assert all("the workers were not asked" in repr(one) for one in (far, near))


WRONG: dict[str, Callable[[Lab], object]] = {
    "run": lambda lab: lab.run("nothing-there"),
    "run outside the store": lambda lab: lab.run("../planted"),
    "site of norms": lambda lab: lab.run("planted").norms("mlp_out"),
    "layer of norms": lambda lab: lab.run("planted").norms("resid_post.17"),
    "quantile": lambda lab: lab.run("planted").norms(quantiles=(0.5, 1.5)),
    "no quantile": lambda lab: lab.run("planted").norms(quantiles=[float("nan")]),
    "what no norms were stored of": lambda lab: lab.run("planted").norms(quantity="cosine_to_next"),
    "bins of norms": lambda lab: lab.run("planted").norms(histogram=10**6),
    "edges of norms": lambda lab: lab.run("planted").norms(histogram=[3, 2]),
    "histogram by position": lambda lab: lab.run("planted").norms(by="position", histogram=3),
    "norms by token of no sequences": lambda lab: lab.run("planted").token_norms(range(90, 99)),
    "site of growth": lambda lab: lab.run("planted").fit_growth("resid_mid"),
    "layers of growth": lambda lab: lab.run("planted").fit_growth(layers=range(100)),
    "layers with a gap": lambda lab: lab.run("planted").fit_growth(layers=(2, 0)),
    "nothing left": lambda lab: lab.run("empty").norms(),
    "too many examples": lambda lab: lab.run("planted").feature(SAE, FIRING).top(10**6),
    "no examples": lambda lab: lab.run("planted").feature(SAE, FIRING).top(0),
    "window": lambda lab: lab.run("planted").feature(SAE, FIRING).top(tokens_before=10**6),
    "bins": lambda lab: lab.run("planted").feature(SAE, FIRING).statistics(bins=10**6),
    "site of activations": lambda lab: lab.run("planted").activations("resid_post.0"),
    "no site": lambda lab: lab.run("planted").activations("residual"),
    "one site of several": lambda lab: lab.run("planted").activations(["resid_post.1", "z.0"]),
    "rows past the end": lambda lab: lab.run("planted").activations("resid_post.1", range(100, 200)),
    "rows of no sequence": lambda lab: lab.run("planted").activations("resid_post.1", range(2, 2)),
    "rows of sequences the wrong way": lambda lab: lab.run("planted").activations("resid_post.1", range(5, 2)),
    "rows before the first": lambda lab: lab.run("planted").activations("resid_post.1", slice(-3, None)),
    "positions past the end": lambda lab: lab.run("planted").activations("resid_post.1", positions=range(500, 600)),
    "tokens past the end": lambda lab: lab.run("planted").tokens(slice(100, None)),
    "tokens of no sequence": lambda lab: lab.run("planted").tokens(range(0)),
    "examples past the end": lambda lab: (
        lab.run("planted").feature(SAE, FIRING).top(where=Where(sequences=range(100, 200)))
    ),
    "random examples past the end": lambda lab: (
        lab.run("planted").feature(SAE, FIRING).uniform(3, "positions", where=Where(sequences=range(100, 200)))
    ),
    "active past the end": lambda lab: lab.run("planted").features(SAE).active(where=Where(positions=slice(500, None))),
    "no rows, past the client": lambda lab: lab._backend.rows(ReadTokens("planted", TokenSelection(Range(0, 0)))),
    # Past the client's own check, to see that both doors say the same.
    "feature": lambda lab: lab._backend.ask(GetFeatureStatistics("planted", SAE, 10**6)),
    "sampled feature": lambda lab: lab._backend.ask(SampleExamples("planted", SAE, (10**6,))),
    "read feature": lambda lab: lab._backend.rows(ReadFeature("planted", SAE, 10**6)),
    "named feature": lambda lab: lab._backend.ask(FindFeatures("planted", SAE, (10**6,))),
    "other feature": lambda lab: lab._backend.ask(GetCofiringFeatures("planted", SAE, 10**6)),
    "active of an unknown SAE": lambda lab: lab._backend.ask(GetActiveFeatures("planted", "other")),
    "method": lambda lab: lab._backend.ask(SampleExamples("planted", SAE, (1,), k=2000)),
    "too many": lambda lab: lab.run("planted").features(SAE).sample(range(12), k=1000),
    "bounds the wrong way": lambda lab: lab.run("planted").features(SAE).search(density=(0.5, 0.1)),
    "order of tokens": lambda lab: lab.run("planted").features(SAE).active(order="density"),
    "statistic": lambda lab: lab.run("planted").features(SAE).search(order="kurtosis"),
    "sae": lambda lab: lab._backend.ask(GetFeatureStatistics("planted", "other", 0)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors(wrong: str, other: Lab, direct: Lab) -> None:
    seen = []
    for lab in (other, direct):
        with pytest.raises(ActstoreError) as caught:
            WRONG[wrong](lab)
        error = caught.value
        seen.append((type(error), error.reason, error.message, error.field, error.value, error.allowed))
    assert seen[0] == seen[1]
    assert error.field is not None
    assert error.allowed is not None or error.reason == "NOTHING_LEFT"  # nothing would be allowed
    assert error.next_step
