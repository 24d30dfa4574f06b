"""Several corrupt candidates for one clean prompt: what each shows and hides, and the prompts of an experiment."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer

from actstore import BadRequest, PromptPair, Sweep, TokenComparison, compare_corruptions
from actstore._patching.replaced_tokens import token_table
from actstore._patching.sweep import sweep_of
from actstore_api.records.patching import RunSweep
from actstore_api.records.terms import ModelReference
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.sweep import WholeSweep, run_sweep
from examples.docstring import roles
from examples.docstring_prompts import NAMES, STYLES, WORDS, docstring_prompt
from tests.client.workers.saes import told
from tests.client.workers.stand_in import UNAUDITED
from tests.worker.models.hand_built import induction

MODELS = Path(__file__).parents[3] / "models"
CLEAN, POINTER, ANSWER = ["a", "b", ".", "a"], ["x", "b", ".", "a"], ["a", "y", ".", "a"]


def planted(
    effects: dict[str, float], corrupt: list[str] = POINTER, gap: float = 4.0, direction: str = "denoise"
) -> Sweep:
    """Two pairs whose mean effects are these, of z.0.0, z.0.1 and so on at position 1, by name."""
    rows = [
        {
            "pair": pair, "direction": direction, "site": "z", "layer": 0, "position": 1, "head": int(name),
            "name": None, "token": "b", "normalized": effect + spread,
        }
        for pair, spread in enumerate((-0.05, 0.05))
        for name, effect in effects.items()
    ]  # fmt: skip
    baselines = [
        {"pair": pair, "prompt": prompt, "logit_difference": value}
        for pair in (0, 1)
        for prompt, value in (("clean", 1.0), ("corrupt", 1.0 - gap if pair else 1.0 + gap))
    ]
    return Sweep(
        table=pa.Table.from_pylist(rows),
        prompt_tokens=pa.table({"position": range(4), "clean": CLEAN, "corrupt": corrupt}),
        clean_logit_difference=1.0,
        corrupt_logit_difference=1.0 - gap,
        provenance=told(model="planted"),
        audit=UNAUDITED,
        pairs=tuple(PromptPair("a b . a", " ".join(corrupt), "b", "y") for _ in range(2)),
        baseline_table=pa.Table.from_pylist(baselines),
    )


def test_effects_stand_side_by_side_with_their_spread() -> None:
    found = compare_corruptions(
        {
            "pointer": planted({"0": 0.9, "1": 0.5, "2": 0.1}),
            "answer": planted({"0": 0.1, "1": 0.6, "2": 0.0}, ANSWER),
            "both": planted({"0": 0.5, "1": 0.4, "2": 0.0}, ["x", "y", ".", "a"]),
        }
    )
    rows = list(found)
    assert list(rows[0]) == [
        "direction", "site", "layer", "position", "head", "token", "pointer", "answer", "both", "least", "greatest",
        "spread",
    ]  # fmt: skip
    assert [row["head"] for row in rows] == [0, 1, 2]
    assert {row["token"] for row in rows} == {"b"}
    numbers = [[row[name] for name in ("pointer", "answer", "both", "least", "greatest", "spread")] for row in rows]
    expected = [[0.9, 0.1, 0.5, 0.1, 0.9, 0.8], [0.5, 0.6, 0.4, 0.4, 0.6, 0.2], [0.1, 0.0, 0.0, 0.0, 0.1, 0.1]]
    assert numbers == [pytest.approx(row) for row in expected]
    assert found.replacing == ("answer", "both")
    assert found.gaps == pytest.approx({"pointer": 4.0, "answer": 4.0, "both": 4.0})


def test_what_an_answer_replacing_corruption_hides_is_named() -> None:
    sweeps = {
        "pointer": planted({"0": -0.9, "1": 0.9, "2": 0.4}),
        "answer": planted({"0": 0.2, "1": 0.3, "2": 0.0}, ANSWER),
    }
    found = compare_corruptions(sweeps)
    (hidden,) = found.hidden()
    assert (hidden["head"], hidden["corruption"], hidden["shown_by"]) == (0, "answer", "pointer")
    assert (hidden["effect"], hidden["effect_there"]) == pytest.approx((0.2, -0.9))
    (warning,) = found.warnings
    assert warning.startswith("answer replaces the answer and hides what pointer shows: z.0.0 at 1 'b'. ")
    assert f"warning: {warning}" in repr(found)
    assert found.to_dict()["warnings"] == [warning]
    assert len(compare_corruptions(sweeps, threshold=0.3).hidden()) == 1
    assert len(compare_corruptions(sweeps, threshold=0.7).hidden()) == 2
    assert len(compare_corruptions(sweeps, threshold=1.0).hidden()) == 0


def test_many_hidden_cells_are_counted() -> None:
    names = [str(head) for head in range(5)]
    sweeps = {"pointer": planted(dict.fromkeys(names, 1.0)), "answer": planted(dict.fromkeys(names, 0.0), ANSWER)}
    assert "; z.0.2 at 1 'b' and 2 more. " in compare_corruptions(sweeps).warnings[0]


def test_weak_corruptions_and_replacing_ones_alone_are_warned_of() -> None:
    weak = compare_corruptions({"pointer": planted({"0": 1.0}), "weak": planted({"0": 1.0}, gap=0.3)})
    assert ["weak moves the logit difference by 0.3" in text for text in weak.warnings] == [True]
    alone = compare_corruptions({name: planted({"0": 1.0}, ANSWER) for name in ("one", "two")})
    assert ["every corruption replaces the answer" in text for text in alone.warnings] == [True]
    assert list(alone.hidden()) == []


def compared(attention: float, moved: float = 0.0) -> TokenComparison:
    """Of the token x that POINTER has at position 0, which head 0.1 attends to so much."""
    place = {"corruption": "pointer", "position": 0, "prompt": "corrupt"}
    embedding = {"token": 7, "text": "x", "norm_z": 2.9, "cosine_z": -2.9}
    tokens = pa.Table.from_pylist([place | embedding])
    usual = {"usual_attention": 0.2, "attention_deviation": 0.1, "shift": 0.0}
    heads = pa.Table.from_pylist(
        [
            place | usual | {"layer": 0, "head": head, "attention": attention if head else 0.2}
            | {"moved": moved if head else 0.0, "usual_moved": 0.1, "moved_deviation": 0.0}
            for head in range(2)
        ]
    )  # fmt: skip
    names, provenance = ("pointer", "answer"), told(model="planted")
    return TokenComparison(table=token_table(tokens, heads), names=names, heads=heads, provenance=provenance)


def test_a_head_that_reacts_to_an_odd_token_is_warned_of_where_it_has_an_effect() -> None:
    sweeps = {"pointer": planted({"0": 0.9, "1": 0.9}), "answer": planted({"0": 0.9, "1": 0.8}, ANSWER)}
    (warning,) = compare_corruptions(sweeps, token_comparison=compared(0.8)).warnings
    assert warning.startswith("pointer shows z.0.1 at 1 'b': head 0.1 treats the token 'x' unlike other tokens")
    assert compare_corruptions(sweeps, token_comparison=compared(0.2, moved=0.36)).warnings
    for ordinary in (compared(0.49), compared(0.2, moved=0.34)):
        assert compare_corruptions(sweeps, token_comparison=ordinary).warnings == ()
        assert [row["odd"] for row in ordinary] == [""]
    assert compare_corruptions(sweeps, threshold=1.0, token_comparison=compared(0.8)).warnings == ()


def test_what_is_no_sweep_and_no_comparison_is_refused() -> None:
    sweeps = {"pointer": planted({"0": 0.9}), "answer": planted({"0": 0.9}, ANSWER)}
    for wrong, field in (((sweeps | {"answer": 3}, 0.5, None), "sweeps"), ((sweeps, 0.5, sweeps), "token_comparison")):
        with pytest.raises(BadRequest) as refusal:
            compare_corruptions(*wrong)
        assert refusal.value.field == field
    with pytest.raises(BadRequest, match="choose from pointer, answer"):
        compared(0.8).reacting("another")


def test_tokens_of_other_corruptions_are_refused() -> None:
    sweeps = {"pointer": planted({"0": 0.9}), "another": planted({"0": 0.9})}
    with pytest.raises(BadRequest, match="different corruptions"):
        compare_corruptions(sweeps, token_comparison=compared(0.2))


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (replace(planted({"0": 1.0}), provenance=told(model="another")), "other model"),
        (replace(planted({"0": 1.0}), provenance=told(config_sha256="another")), "other model"),
        (replace(planted({"0": 1.0}), pairs=(PromptPair("c d", "e f", "b", "y"),)), "other clean prompts"),
        (planted({"0": 1.0, "1": 1.0}), "other cells or directions"),
        (planted({"0": 1.0}, direction="noise"), "other cells or directions"),
        (replace(planted({"0": 1.0}), receivers=("q.1.0",), path_mlps="recomputed"), "or receivers than the first"),
        (replace(planted({"0": 1.0}), source="zero"), "other source"),
    ],
)
def test_what_cannot_be_compared_is_refused(other: Sweep, match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        compare_corruptions({"one": planted({"0": 1.0}), "two": other})


def test_cells_that_were_not_computed_are_no_effects() -> None:
    """Of a screen they have an estimate alone."""
    screened = planted({"0": 1.0, "1": 0.5})
    rows = [row | ({"normalized": None} if row["head"] else {}) for row in screened]
    screened = replace(screened, table=pa.Table.from_pylist(rows))
    with pytest.raises(BadRequest, match="1 cells of the sweep 'screened'") as refusal:
        compare_corruptions({"whole": planted({"0": 1.0, "1": 0.5}), "screened": screened})
    assert (refusal.value.field, refusal.value.allowed) == ("sweeps", "sweeps without `screen`")


def test_bad_names_and_thresholds_are_refused() -> None:
    one = planted({"0": 1.0})
    for sweeps, match in (
        ({"one": one}, "several sweeps"),
        ({"one": one, "spread": one}, "column"),
        ([one], "several"),
    ):
        with pytest.raises(BadRequest, match=match):
            compare_corruptions(sweeps)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="threshold"):
        compare_corruptions({"one": one, "two": one}, threshold=-1.0)


def swept(model: LanguageModel, corrupt: str, wrong: str) -> Sweep:
    pairs = (PromptPair(". a b . a", corrupt, "b", wrong),)
    question = RunSweep(ModelReference("induction"), pairs, sites=("z",))
    *_, result = run_sweep(model, question, PatchingLimits())
    assert isinstance(result, WholeSweep)
    return sweep_of(result, question, [result.cells])


def test_the_head_that_points_is_hidden_by_another_answer(tmp_path: Path) -> None:
    """Head 0.0 marks the answer by its predecessor, and head 1.0 moves it: tests/worker/hand_built.py."""
    model = load_model(
        ModelCatalog((tmp_path,)).find_model(induction(tmp_path / "induction").name), device=torch.device("cpu")
    )
    found = compare_corruptions({"pointer": swept(model, ". x b . a", "y"), "answer": swept(model, ". a x . a", "x")})
    assert found.replacing == ("answer",)
    rows = {(row["direction"], row["layer"], row["head"], row["position"]): row for row in found}
    for (_, *place), row in rows.items():
        assert row["pointer"] == pytest.approx(float(place in ([0, 0, 2], [1, 0, 4])), abs=1e-4), row
        assert row["answer"] == pytest.approx(float(place == [1, 0, 4]), abs=1e-4), row
    hidden = [(row["direction"], row["layer"], row["head"], row["position"]) for row in found.hidden()]
    assert sorted(hidden) == [("denoise", 0, 0, 2), ("noise", 0, 0, 2)]
    assert "hides what pointer shows: z.0.0 at 2 'b'" in found.warnings[0]


def test_prompts_of_the_experiment_are_of_one_length() -> None:
    """With the bundled tokenizer, whatever is drawn."""
    tokenizer = Tokenizer.from_file(str(MODELS / "pystdlib" / "tokenizer.json"))
    texts = [f"{space}{name}" for name in (*NAMES, *WORDS) for space in ("", " ")]
    assert [text for text in texts if len(tokenizer.encode(text).ids) != 1] == []
    assert not set(NAMES) & set(WORDS)
    for style in STYLES:
        prompts = [docstring_prompt(seed, style) for seed in range(50)]
        assert prompts == [docstring_prompt(seed, style) for seed in range(50)]
        texts = [text for prompt in prompts for text in (prompt.clean, *prompt.corrupt.values())]
        assert len({len(tokenizer.encode(text).ids) for text in texts}) == 1


@pytest.mark.parametrize("style", STYLES)
def test_each_corruption_changes_what_it_says(style: str) -> None:
    """Tokens that differ: two names in the definition or behind it, the answer, or all five."""
    changed = {
        "random_doc": 2, "random_def": 2, "random_answer": 1, "random_def_doc": 4, "random_answer_doc": 3,
        "random_random": 5,
    }  # fmt: skip
    tokenizer = Tokenizer.from_file(str(MODELS / "pystdlib" / "tokenizer.json"))
    for prompt in (docstring_prompt(seed, style) for seed in range(20)):
        clean = tokenizer.encode(prompt.clean).tokens
        for name, text in prompt.corrupt.items():
            tokens = tokenizer.encode(text).tokens
            assert sum(one != other for one, other in zip(clean, tokens, strict=True)) == changed[name], name
        assert prompt.answer not in prompt.wrong
        assert len(prompt.wrong) == len(set(prompt.wrong))


def test_roles_are_where_the_published_experiment_has_them() -> None:
    """With BOS, as auto-circuit's copy of the docstring circuit names the positions."""
    tokenizer = Tokenizer.from_file(str(MODELS / "pystdlib" / "tokenizer.json"))
    prompt = docstring_prompt(0)
    texts = ["<|bos|>", *(tokenizer.decode([token]) for token in tokenizer.encode(prompt.clean).ids)]
    sweep = replace(planted({"0": 1.0}), prompt_tokens=pa.table({"clean": texts, "corrupt": texts}))
    expected = {11: "A_def", 13: "B_def", 14: "comma_B", 15: "C_def", 27: "A_doc", 34: "B_doc", 40: "END"}
    assert roles(sweep, prompt, "rest") == expected
