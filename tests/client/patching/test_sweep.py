"""Patching through a real service to workers of the same contract."""

from collections.abc import Callable
from dataclasses import replace
from inspect import Parameter, signature
from typing import get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from actstore import (
    BadRequest,
    Fault,
    Lab,
    PatchedSae,
    Receivers,
    StoredRows,
    StoredText,
    Sweep,
    SweepEstimate,
    SweptCells,
)
from actstore._patching.request import PatchOptions, sweep
from actstore._patching.sweep import sweep_of
from actstore_api.records.patching import (
    CellReference,
    JointCells,
    PatchSpan,
    PromptPair,
    RunSweep,
    Screen,
    StoredSource,
    SweepResult,
    TakenRows,
)
from actstore_api.records.terms import ModelReference, Range
from tests.client.workers import stand_in as planted
from tests.client.workers.saes import told
from tests.client.workers.stand_in import StandInWorkers

MODEL = ModelReference("planted-model")
ASKED = RunSweep(model=MODEL, pairs=())


def swept(result: SweepResult, rows: pa.Table | None = None) -> Sweep:
    """An answer that ends so; of the planted rows, where there are no others."""
    return sweep_of(result, ASKED, [planted.cells() if rows is None else rows])


def patch(lab: Lab, **how: object) -> Sweep:
    asked = {"clean": "When Mary gave to", "corrupt": "When John gave to", "answers": (" Mary", " John"), **how}
    return lab.patch("planted-model", **asked)


def test_a_sweep_is_tidy_and_has_its_baselines(remote: Lab) -> None:
    sweep = patch(remote)
    assert sweep.to_arrow().equals(planted.cells())
    assert list(sweep.to_pandas().columns) == [
        "direction", "site", "layer", "position", "head", "token", "logit_difference", "normalized",
    ]  # fmt: skip
    assert (sweep.clean_logit_difference, sweep.corrupt_logit_difference) == (3.0, -1.0)
    assert sweep.tokens == {"clean": planted.CLEAN, "corrupt": planted.CORRUPT}
    assert sweep.provenance.model == "planted-model"
    assert sweep.to_dict()["clean_logit_difference"] == 3.0


def test_cells_are_seen_as_they_are_finished(remote: Lab) -> None:
    seen: list[SweptCells] = []
    sweep = patch(remote, on_cells=seen.append)
    assert [len(part) for part in seen] == [len(sweep) // 2, len(sweep) - len(sweep) // 2]
    assert pa.concat_tables(part.to_arrow() for part in seen).equals(sweep.to_arrow())
    assert set(next(iter(seen[0]))) == set(sweep.to_arrow().column_names)


def test_an_answer_that_was_kept_says_so_and_can_be_refused(remote: Lab, workers: StandInWorkers) -> None:
    patch(remote, fresh=True)
    assert workers.requests[-1].fresh
    result = replace(planted.result(), audit=replace(planted.UNAUDITED, cached=True))
    assert "kept" in repr(swept(result))
    with pytest.raises(BadRequest, match="fresh"):
        patch(remote, fresh="yes")


def test_an_estimate_is_of_the_same_request(remote: Lab, workers: StandInWorkers) -> None:
    how = {"clean": "When Mary gave to", "corrupt": "When John gave to", "answers": (" Mary", " John")}
    estimate = remote.estimate_patch("planted-model", **how, sites="z", layers=[1])
    asked = workers.requests[-1].sweep
    sweep = remote.patch("planted-model", **how, sites="z", layers=[1])
    assert asked == workers.requests[-1]
    assert estimate == SweepEstimate(len(sweep), 10.5, 40.0, len(sweep) * 100, 1.5)
    assert repr(estimate).endswith(f"{len(sweep) * 100:,} bytes; about 1.5 s of computation")
    with pytest.raises(BadRequest) as refusal:
        remote.estimate_patch("planted-model", **how | {"corrupt": "When"})
    assert refusal.value.reason == "PROMPT_LENGTHS_DIFFER"
    with pytest.raises(TypeError, match="layer"):
        remote.estimate_patch("planted-model", **how, layer=[1])


def test_prompts_and_answers_may_be_token_ids(remote: Lab, workers: StandInWorkers) -> None:
    clean, corrupt = [0, 4, 5, 6, 7], np.array([0, 4, 8, 6, 7])
    patch(remote, clean=clean, corrupt=corrupt, answers=(np.int32(5), np.int64(8)))
    first, second = tuple(clean), tuple(corrupt.tolist())
    assert workers.requests[-1].pairs == (PromptPair(first, second, 5, 8),)
    patch(remote, clean=[clean] * 2, corrupt=[corrupt, clean], answers=[(5, " John"), (5, 8)])
    assert workers.requests[-1].pairs == (PromptPair(first, second, 5, " John"), PromptPair(first, first, 5, 8))


def test_the_request_is_what_was_asked(remote: Lab, workers: StandInWorkers) -> None:
    patch(remote, sites="z", layers=[2, 0], directions=("noise",), revision="step-9", prepend_bos=False)
    request = workers.requests[-1]
    assert request == RunSweep(
        model=ModelReference("planted-model", "step-9"),
        pairs=(PromptPair("When Mary gave to", "When John gave to", " Mary", " John"),),
        sites=("z",),
        layers=(2, 0),
        directions=("noise",),
        prepend_bos=False,
    )


def test_every_part_of_a_request_arrives(remote: Lab, workers: StandInWorkers) -> None:
    remote.patch(
        "planted-model",
        clean=["a b", "c d"],
        corrupt=["e f", "g h"],
        answers=[(" a", " b"), (" c", " d")],
        heads=[1],
        positions=[3, 2],
        window_layers=2,
        source="zero",
        joint={"both": [("z.1.0", 3), ("mlp_out.2", 1)]},
    )
    assert workers.requests[-1] == RunSweep(
        model=MODEL,
        pairs=(PromptPair("a b", "e f", " a", " b"), PromptPair("c d", "g h", " c", " d")),
        heads=(1,),
        only_positions=(3, 2),
        window_layers=2,
        source="zero",
        joint=(JointCells("both", (CellReference("z.1.0", 3), CellReference("mlp_out.2", 1))),),
    )
    patch(remote, positions="last")
    assert workers.requests[-1].positions == "last"


def test_what_takes_the_place_arrives(remote: Lab, workers: StandInWorkers) -> None:
    patch(remote, source="mean", stored="planted", sites="resid_pre")
    sent = workers.requests[-1]
    assert (sent.source, sent.stored) == ("mean", StoredSource("planted", frozenset({"bos"})))
    patch(remote, source="resample", stored=StoredRows("planted", exclude=(), seed=7), sites="resid_pre")
    sent = workers.requests[-1]
    assert (sent.source, sent.stored) == ("resample", StoredSource("planted", frozenset(), 7))
    patch(remote, sae=PatchedSae("planted-sae", features=range(3), sae_error="patched"))
    sent = workers.requests[-1]
    assert (sent.sae, sent.features, sent.sae_error, sent.stored) == ("planted-sae", (0, 1, 2), "patched", None)


def test_receivers_arrive(remote: Lab, workers: StandInWorkers) -> None:
    patch(remote, receivers=["q.1.0", "mlp_in.1"])
    sent = workers.requests[-1]
    assert (sent.receivers, sent.path_mlps) == (("q.1.0", "mlp_in.1"), "recomputed")
    sweep = patch(remote, receivers=Receivers("logits", path_mlps="frozen"))
    assert (sweep.receivers, sweep.path_mlps) == (("logits",), "frozen")
    assert "sent along paths to logits; MLPs on the way are frozen" in repr(sweep)
    assert sweep.to_dict()["receivers"] == ["logits"]
    sent = workers.requests[-1]
    assert (sent.receivers, sent.path_mlps) == (("logits",), "frozen")
    assert patch(remote).receivers == ()


def test_spans_arrive_as_text_and_as_tokens(remote: Lab, workers: StandInWorkers) -> None:
    patch(remote, spans={"who": ("Mary", range(2, 3)), "end": slice(3, 5)} | {"to": "to"})
    assert workers.requests[-1].spans == (
        PatchSpan("who", "Mary", Range(2, 3)),
        PatchSpan("end", Range(3, 5), Range(3, 5)),
        PatchSpan("to", "to", "to"),
    )


@pytest.mark.parametrize(
    ("how", "field", "message"),
    [
        ({"spans": ["Mary"]}, "spans", "spans must be a dict from names"),
        ({"spans": {"who": 3}}, "spans", "a part of the clean prompt and a part of the corrupt prompt"),
        ({"spans": {"who": ("Mary", 3)}}, "spans", "must be a range or a slice"),
        ({"spans": {"who": ("Mary", slice(3, None))}}, "spans", "has no end"),
        ({"spans": {"": "Mary"}}, "spans", "spans is empty"),
        ({"source": "median"}, "source", "median"),
        ({"receivers": [3]}, "receivers", "receivers"),
    ],
)
def test_what_takes_the_place_is_checked_before_it_is_sent(
    remote: Lab, workers: StandInWorkers, how: dict[str, object], field: str, message: str
) -> None:
    with pytest.raises(BadRequest, match=message) as refusal:
        patch(remote, **how)
    assert refusal.value.field == field
    assert not workers.requests


@pytest.mark.parametrize(
    ("made", "field", "allowed"),
    [
        (lambda: PatchedSae("planted-sae", sae_error="lost"), "sae_error", "kept, dropped, patched"),
        (lambda: PatchedSae("planted-sae", sae_error=None), "sae_error", "kept, dropped, patched"),
        (lambda: PatchedSae("planted-sae", features=[-1]), "features", "0..4294967295"),
        (lambda: PatchedSae("planted-sae", features=[]), "features", "at least one"),
        (lambda: PatchedSae(""), "sae", "a name"),
        (lambda: Receivers("logits", path_mlps="held"), "path_mlps", "recomputed, frozen"),
        (lambda: Receivers("logits", path_mlps=["frozen"]), "path_mlps", "one of 'recomputed', 'frozen'"),
        (lambda: Receivers([]), "receivers", "at least one"),
        (lambda: Receivers(None), "receivers", "q.9.6"),
        (lambda: StoredRows("planted", exclude="verbs"), "exclude", "bos, special, sink"),
        (lambda: StoredRows("planted", seed=2**32), "seed", "0..4294967295"),
        (lambda: StoredRows(None), "run", "a run, or its name"),
        (lambda: StoredText("planted", n_tokens=-1), "n_tokens", "0..4294967295"),
        (lambda: StoredText(""), "run", "a run, or its name"),
    ],
)
def test_a_value_is_checked_where_it_is_made(made: Callable[[], object], field: str, allowed: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        made()
    assert refusal.value.field == field
    assert str(refusal.value.allowed).startswith(allowed)


def test_a_value_says_the_same_each_time(remote: Lab, workers: StandInWorkers) -> None:
    """Of what can be gone through once, too."""
    sae, stored = PatchedSae("planted-sae", features=iter([3])), StoredRows("planted", exclude=iter(["special"]))
    for _ in range(2):
        patch(remote, sae=sae, source="resample", stored=stored, receivers=Receivers(iter(["logits"])))
        sent = workers.requests[-1]
        assert (sent.features, sent.receivers) == ((3,), ("logits",))
        assert sent.stored == StoredSource("planted", frozenset({"special"}))


def test_a_run_stands_for_its_name(remote: Lab, workers: StandInWorkers) -> None:
    for run in (remote.run("planted"), "planted", StoredRows(remote.run("planted"))):
        patch(remote, source="mean", stored=run)
        assert workers.requests[-1].stored == StoredSource("planted")


@pytest.mark.parametrize("field", ["source", "positions", "directions"])
def test_what_is_no_word_is_refused_with_the_words(field: str, remote: Lab, workers: StandInWorkers) -> None:
    """None, of words that have no default in its place; words where one is meant; and others."""
    words = {"source": "zero", "positions": "each", "directions": "noise"}[field]
    for value in ("nothing", 3, [None], {"source": None, "positions": None, "directions": 0}[field]):
        with pytest.raises(BadRequest) as refusal:
            patch(remote, **{field: value})
        assert refusal.value.field == field
        assert words in str(refusal.value.allowed) or field == "positions"
    assert not workers.requests


def test_several_words_where_one_is_meant_are_refused(remote: Lab, workers: StandInWorkers) -> None:
    for value in (["zero", "mean"], ["zero"], (), []):
        with pytest.raises(BadRequest, match="one word, not several") as refusal:
            patch(remote, source=value)
        assert (refusal.value.field, refusal.value.value) == ("source", repr(value))
        assert refusal.value.allowed == "one of 'prompt', 'zero', 'mean', 'resample'"
    assert not workers.requests


@pytest.mark.parametrize(
    "empty",
    [
        {"sites": []}, {"sites": (), "joint": {}}, {"layers": []}, {"heads": ()}, {"positions": []}, {"spans": {}},
        {"directions": []}, {"receivers": []}, {"layers": np.array([], int)}, {"heads": iter(())},
        {"joint": {"both": []}},
    ],
    ids=" ".join,  # the text of an iterator would name its address
)  # fmt: skip
def test_an_empty_collection_is_not_taken_for_everything(
    empty: dict[str, object], remote: Lab, workers: StandInWorkers
) -> None:
    field = next(iter(empty))
    for call in (remote.patch, remote.estimate_patch):
        with pytest.raises(BadRequest, match="nothing to ask about") as refusal:
            call("planted-model", clean="a b", corrupt="a c", answers=(" a", " b"), **empty)
        assert (refusal.value.field, refusal.value.reason) == (field, "ARGUMENT_INVALID")
        assert str(refusal.value.allowed).startswith("at least one")
    assert not workers.requests


def test_beside_joint_cells_or_features_there_may_be_no_sites(remote: Lab, workers: StandInWorkers) -> None:
    for more in ({"joint": {"both": [("z.1.0", 3)]}}, {"sae": "planted-sae"}):
        patch(remote, sites=[], **more)
        assert workers.requests[-1].sites == ()


def test_the_signature_shows_every_argument() -> None:
    """Of what type checkers read in a TypedDict, and with the defaults."""
    asked = signature(sweep).parameters
    options = {name: each for name, each in asked.items() if each.kind is Parameter.KEYWORD_ONLY}
    assert get_type_hints(PatchOptions) == {name: each.annotation for name, each in options.items()}
    for call in (Lab.patch, Lab.estimate_patch):
        shown = signature(call).parameters
        assert {name: shown[name] for name in options} == options
        assert all(each.kind is not Parameter.VAR_KEYWORD for each in shown.values())


def test_rows_of_a_stored_run_are_told() -> None:
    taken = TakenRows("code", used=900, read=1000, stored=5000, excluded=frozenset({"bos"}))
    sweep = swept(replace(planted.result(), stored_rows=taken))
    assert sweep.excluded == ("bos",)
    assert sweep.to_dict()["stored_rows"] == {
        "run": "code", "used": 900, "read": 1000, "stored": 5000, "excluded": ["bos"], "sink_ratio": None,
    }  # fmt: skip
    assert "rows of run code: 900 used of 1,000 that were looked at of 5,000; excluded: bos" in repr(sweep)
    for ratio, words in ((10, ""), (0, " (no sinks were looked for)")):
        rows = replace(taken, excluded=frozenset({"bos", "sink"}), sink_ratio=ratio)
        shown = repr(swept(replace(planted.result(), stored_rows=rows)))
        [line] = [line for line in shown.splitlines() if "1,000" in line]
        assert line.endswith(f"; excluded: bos, sink{words}")


def test_prompts_of_unequal_lengths_have_their_own_tokens_and_nothing_to_draw_of_spans() -> None:
    tokens = pa.table({"position": range(3), "clean": ["a", "b", "c"], "corrupt": ["a", "d", None]})
    cells = planted.cells(("resid_pre",), (1,))
    named = cells.append_column("name", pa.array(["span"] * len(cells)))
    sweep = swept(replace(planted.result(), tokens=tokens), named)
    assert sweep.tokens == {"clean": ["a", "b", "c"], "corrupt": ["a", "d"]}
    with pytest.raises(BadRequest, match="have no place in a heat map"):
        sweep.plot()


def test_a_screen_arrives(remote: Lab, workers: StandInWorkers) -> None:
    patch(remote)
    assert workers.requests[-1].screen is None
    patch(remote, screen=100)
    assert workers.requests[-1].screen == Screen(100, qk_correction=True)
    patch(remote, screen=Screen(7, qk_correction=False, grad_drop=True))
    assert workers.requests[-1].screen == Screen(7, qk_correction=False, grad_drop=True)


def test_direct_shares_are_a_table_of_their_own() -> None:
    shares = pa.table({"pair": [0], "prompt": ["clean"], "part": ["embedding"], "share": [0.5]})
    assert len(swept(planted.result()).direct) == 0
    sweep = swept(replace(planted.result(), direct=shares))
    assert sweep.direct.to_arrow().equals(shares)
    assert sweep.to_dict()["direct"] == shares.to_pylist()


def screened() -> Sweep:
    """Of two cells a direction, A is computed in both directions and B in one; estimates say the opposite."""
    rows = [
        {
            "direction": direction, "site": "z", "layer": layer, "position": 0, "head": 0,
            "logit_difference": effect, "normalized": effect, "estimate": estimate,
        }
        for direction, layer, effect, estimate in (
            ("denoise", 0, 0.2, 5.0), ("denoise", 1, None, 0.1), ("noise", 0, -0.9, 0.3), ("noise", 1, 0.6, 4.0),
        )
    ]  # fmt: skip
    return Sweep(
        table=pa.Table.from_pylist(rows),
        prompt_tokens=pa.table({"clean": ["a"], "corrupt": ["b"]}),
        clean_logit_difference=1.0,
        corrupt_logit_difference=0.0,
        provenance=told(),
        audit=replace(planted.UNAUDITED, audited_cells=3, rank_agreement=-0.5),
    )


def test_what_a_screen_left_out_is_not_told_as_an_effect() -> None:
    sweep = screened()
    assert [row["normalized"] for row in sweep.top(9)] == [-0.9, 0.6, 0.2]
    looks = {row["layer"]: row["looks"] for row in sweep.directions()}
    assert looks == {0: "AND", 1: None}
    assert {row["layer"]: row["normalized"] for row in sweep.mean() if row["direction"] == "denoise"} == {
        0: 0.2,
        1: None,
    }
    assert "3 of 4 cells computed, the others estimated; the ranks of estimates and effects agree by -0.50" in repr(
        sweep
    )
    assert "estimate" in repr(sweep)
    values = [ax.images[0].get_array().filled(float("nan"))[:, 0].tolist() for ax in sweep.plot().axes[:-1]]
    assert values == [[0.2, pytest.approx(float("nan"), nan_ok=True)], [-0.9, 0.6]]


def test_ranks_that_were_not_compared_agree_by_nothing() -> None:
    assert swept(planted.result()).audit.rank_agreement is None
    compared = replace(planted.UNAUDITED, rank_agreement=0.0)
    assert swept(replace(planted.result(), audit=compared)).audit.rank_agreement == 0.0


EFFECTS = {"A": (0.0, 1.0), "B": (1.0, 0.1), "C": (0.9, -1.1), "D": (0.1, 0.2), "E": (0.3, 1.0)}


def two_pairs() -> Sweep:
    """Joint cells with these effects (denoise, noise), in pair 0 and, a tenth larger, in pair 1."""
    rows = [
        {"pair": pair, "direction": direction, "site": "joint", "name": name, "normalized": effect + 0.1 * pair}
        for pair in (0, 1)
        for name, effects in EFFECTS.items()
        for direction, effect in zip(("denoise", "noise"), effects, strict=True)
    ]
    return Sweep(
        table=pa.Table.from_pylist(rows),
        prompt_tokens=pa.table({"clean": [], "corrupt": []}),
        clean_logit_difference=1.0,
        corrupt_logit_difference=0.0,
        provenance=told(),
        audit=planted.UNAUDITED,
    )


def test_denoise_stands_beside_noise_and_says_what_it_looks_like() -> None:
    rows = {row["name"]: row for row in two_pairs().directions()}
    assert {name: row["looks"] for name, row in rows.items()} == {
        "A": "AND", "B": "OR", "C": "both", "D": "neither", "E": "unclear",
    }  # fmt: skip
    assert (rows["A"]["denoise"], rows["A"]["noise"]) == pytest.approx((0.05, 1.05))
    assert {row["looks"] for row in two_pairs().directions(threshold=1.5)} == {"neither"}
    one = two_pairs()
    noise = Sweep(**{**vars(one), "table": one.table.filter(pc.equal(one.table["direction"], "noise"))})
    with pytest.raises(BadRequest, match="both directions"):
        noise.directions()


def test_means_are_over_pairs_with_their_range() -> None:
    rows = {(row["direction"], row["name"]): row for row in two_pairs().mean()}
    assert len(rows) == 2 * len(EFFECTS)
    found = rows["noise", "C"]
    assert (found["normalized"], found["normalized_min"], found["normalized_max"]) == pytest.approx((-1.05, -1.1, -1.0))


def test_top_is_by_distance_from_the_base_run(remote: Lab) -> None:
    sweep = patch(remote)
    frame = sweep.to_pandas()
    expected = frame.loc[frame["normalized"].abs().sort_values(ascending=False).index, "normalized"].head(5).tolist()
    assert [row["normalized"] for row in sweep.top(5)] == expected
    assert {row["direction"] for row in sweep.top(5, direction="noise")} == {"noise"}
    assert "logit difference 3 clean, -1 corrupt" in repr(sweep)
    with pytest.raises(BadRequest, match="direction"):
        sweep.top(5, direction="up")


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"answers": " Mary"}, "answers"),
        ({"answers": (" Mary", 3.5)}, "answers"),
        ({"answers": (" Mary", True)}, "answers"),
        ({"clean": [1, 2.0]}, "clean"),
        ({"directions": ["backwards"]}, "directions"),
        ({"layers": [-1]}, "layers"),
        ({"prepend_bos": "yes"}, "prepend_bos"),
        ({"clean": None}, "clean"),
        ({"clean": ["a", "b"]}, "corrupt"),
        ({"clean": ["a", "b"], "corrupt": ["c"]}, "corrupt"),
        ({"clean": ["a", "b"], "corrupt": ["c", "d"], "answers": [(" a", " b")] * 3}, "answers"),
        ({"positions": "some"}, "positions"),
        ({"positions": [-1]}, "positions"),
        ({"positions": 3}, "positions"),
        ({"heads": [-1]}, "heads"),
        ({"source": "noise"}, "source"),
        ({"joint": ["z.1.0"]}, "joint"),
        ({"joint": {"both": ["z.1.0"]}}, "joint"),
        ({"joint": {"both": 3}}, "joint"),
        ({"joint": {"": [("z.1.0", 3)]}}, "joint"),
        ({"stored": ""}, "stored"),
        ({"stored": 3}, "stored"),
        ({"stored": StoredText("planted")}, "stored"),
        ({"sae": 3}, "sae"),
        ({"sae": ""}, "sae"),
        ({"progress": "no"}, "progress"),
        ({"on_cells": 3}, "on_cells"),
        ({"window_layers": 1.5}, "window_layers"),
        ({"screen": -1}, "screen"),
        ({"screen": Screen(-1)}, "exact_cells"),
        ({"screen": Screen(3, qk_correction=None)}, "qk_correction"),
    ],
)
def test_what_could_not_be_sent_is_refused_here(how: dict[str, object], field: str, remote: Lab) -> None:
    with pytest.raises(BadRequest) as caught:
        patch(remote, **how)
    assert caught.value.field == field
    assert caught.value.allowed


def test_the_workers_refusal_arrives_whole(remote: Lab) -> None:
    with pytest.raises(BadRequest, match="reword one prompt") as caught:
        patch(remote, corrupt="When John gave")
    error = caught.value
    assert (error.reason, error.field, error.value, error.allowed) == ("PROMPT_LENGTHS_DIFFER", "corrupt", "5", "4")


def test_a_sweep_without_a_result_is_a_fault(remote: Lab) -> None:
    with pytest.raises(Fault, match="without a result"):
        remote.patch("no-result", clean="a", corrupt="b", answers=(" a", " b"))
