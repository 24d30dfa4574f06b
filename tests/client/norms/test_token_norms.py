"""Norms of single tokens as a researcher asks for them: through both doors, in pictures, and from a shell."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt

import actstore
from actstore import ActstoreError, Lab, Run, TokenNorms
from actstore._cli.main import main
from actstore._norms.heat_maps import LABELLED_TOKENS_MAX
from actstore._norms.tokens import SHOWN_SITES
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.norms import by_token as token_norms
from tests import stored_run
from tests.client.lab.doors import served
from tests.storage.random_run import RandomRun, make_run, write_run


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def random() -> RandomRun:
    run = make_run(8, sequences=12, longest=30)
    run.norms["resid_post.1"][[3, 5]] = [np.inf, np.nan]
    run.tokens.token[:] %= stored_run.VOCABULARY  # one tokenizer for both runs
    return run


@pytest.fixture(scope="module")
def folder(random: RandomRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside the run of the tests' client, one with sites of two kinds at four layers."""
    folder = tmp_path_factory.mktemp("tokens")
    bucket = open_bucket(str(folder))
    stored_run.write_stored_run(bucket)
    stored_run.write_stored_run(bucket, "partial", shards=(0, 2))
    stored_run.write_stored_run(bucket, "empty", shards=())
    write_run(bucket, random)
    return folder


@pytest.fixture(scope="module")
def doors(folder: Path) -> Iterator[tuple[Lab, Lab]]:
    with served(folder) as far, actstore.connect(folder) as near:
        yield far, near


QUESTIONS: dict[str, Callable[[Run], TokenNorms]] = {
    "one sequence": lambda run: run.token_norms(range(1)),
    "all of them": lambda run: run.token_norms(slice(None), exclude=()),
    "past the end": lambda run: run.token_norms(slice(4, 1000), "resid_post"),
    "of text": lambda run: run.token_norms(range(1, 6), exclude=("bos", "special", "sink")),
    "without position 0": lambda run: run.token_norms(range(3), exclude="position_0"),
    "another measure": lambda run: run.token_norms(range(2), "resid_post.2", quantity="rms"),
}


@pytest.mark.parametrize("name", ["planted", "partial", "run"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_both_doors_say_the_same(question: str, name: str, doors: tuple[Lab, Lab]) -> None:
    far, near = (QUESTIONS[question](lab.run(name)) for lab in doors)
    assert isinstance(far, TokenNorms)
    assert far.table.schema.equals(near.table.schema, check_metadata=True)
    np.testing.assert_array_equal(far.to_numpy(), near.to_numpy())
    assert far.table.select(range(6)).equals(near.table.select(range(6)))
    assert (far.excluded, far.provenance, far.run) == (near.excluded, near.provenance, name)
    assert (repr(far), far._repr_html_(), far.to_dict()) == (repr(near), near._repr_html_(), near.to_dict())


def test_tokens_have_their_planted_norms(doors: tuple[Lab, Lab]) -> None:
    tokens = stored_run.plant().tokens
    for lab in doors:
        found = lab.run("planted").token_norms(range(2, 6), "resid_post", exclude=())
        wanted = (tokens.sequence >= 2) & (tokens.sequence < 6)
        assert found.sequences == (2, 3, 4, 5)
        frame = found.to_pandas()
        for name in ("sequence", "position", "document", "token"):
            assert frame[name].tolist() == getattr(tokens, name)[wanted].tolist()
        assert frame["text"].tolist() == [stored_run.TOKEN_TEXTS[token] for token in tokens.token[wanted]]
        assert set(frame[frame.position == 0].token_class) == {"bos"}
        assert frame[frame.token_class == "special"][["sequence", "position"]].values.tolist() == [[5, 11]]
        text = frame[frame.token_class == "text"]
        for layer in range(3):
            expected = 2 * stored_run.GROWTH**layer * (1 + text.position / 10)
            np.testing.assert_allclose(text[f"resid_post.{layer}"], expected, rtol=1e-6)
        left = lab.run("planted").token_norms(range(2, 6), exclude=("bos", "special"))
        assert (left.excluded, set(left.table["token_class"].to_pylist())) == (("bos", "special"), {"text"})
        np.testing.assert_array_equal(left.to_numpy(), found.to_numpy()[(frame.token_class == "text").to_numpy()])


def test_values_of_several_kinds(random: RandomRun, doors: tuple[Lab, Lab]) -> None:
    found = doors[0].run("run").token_norms(range(12), exclude=())
    assert found.kinds == ("resid_pre", "resid_post")
    assert found.sites_of("resid_post") == tuple(f"resid_post.{layer}" for layer in range(4))
    expected = np.stack([random.norms[site] for site in found.sites_of("resid_post")], axis=1)
    np.testing.assert_array_equal(found.to_numpy("resid_post"), expected)
    assert found.to_numpy().shape == (len(random.tokens.token), 8)
    assert found.to_dict()["rows"][3]["resid_post.1"] is None  # JSON has no word for infinity
    assert f"{len(found)} tokens of 12 sequences at 8 sites" in repr(found)
    assert "excluded: no tokens" in repr(found)


def test_many_sites_are_not_all_shown(doors: tuple[Lab, Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore._norms.tokens.SHOWN_SITES", SHOWN_SITES - 5)
    shown = repr(doors[0].run("run").token_norms(range(1)))
    assert "… 5 more sites" in shown
    assert "resid_post.3" not in shown


def asked(run: str = "planted", sequences: object = None, sites: str | None = None, **options: object) -> Callable:
    return lambda lab: lab.run(run).token_norms(sequences, sites, **options)


THREE = range(3)
WRONG: dict[str, tuple[Callable[[Lab], object], str, str]] = {
    "no sequences": (asked(), "ARGUMENT_INVALID", "sequences"),
    "no range": (asked(sequences=3), "ARGUMENT_INVALID", "sequences"),
    "a step": (asked(sequences=range(0, 9, 2)), "ARGUMENT_INVALID", "sequences"),
    "below 0": (asked(sequences=range(-3, 2)), "ARGUMENT_INVALID", "sequences"),
    "none of them": (asked(sequences=range(0)), "ARGUMENT_INVALID", "sequences"),
    "past the end": (asked(sequences=range(90, 99)), "ARGUMENT_INVALID", "sequences"),
    "not committed": (asked("partial", sequences=range(3, 5)), "ARGUMENT_INVALID", "sequences"),
    "nothing committed": (asked("empty", sequences=THREE), "ARGUMENT_INVALID", "sequences"),
    "site": (asked(sites="mlp_out", sequences=THREE), "SITE_UNKNOWN", "site"),
    "quantity": (asked(sequences=THREE, quantity="cosine_to_next"), "SITE_UNKNOWN", "site"),
    "kind": (lambda lab: asked(sequences=THREE)(lab).plot(site="mlp_out"), "ARGUMENT_INVALID", "kind"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_refusals(wrong: str, doors: tuple[Lab, Lab]) -> None:
    ask, reason, field = WRONG[wrong]
    seen = []
    for lab in doors:
        with pytest.raises(ActstoreError) as caught:
            ask(lab)
        error = caught.value
        seen.append((type(error), error.reason, error.message, error.field, error.value, error.allowed))
    assert seen[0] == seen[1]
    assert (error.reason, error.field) == (reason, field)
    assert error.allowed is not None
    assert error.next_step


def test_too_many_values_are_refused_with_both_numbers(doors: tuple[Lab, Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_norms, "TOKEN_NORM_VALUES_MAX", 100)
    for lab in doors:
        with pytest.raises(actstore.LimitExceeded) as caught:
            lab.run("planted").token_norms(slice(None), exclude=())
        assert (caught.value.field, caught.value.reason) == ("sequences", "LIMIT_EXCEEDED")
        assert "at 3 sites are" in caught.value.message
        assert "the limit is 100" in caught.value.message


def test_a_heat_map_has_a_column_a_token(doors: tuple[Lab, Lab]) -> None:
    found = doors[0].run("planted").token_norms(range(2), exclude=("bos", "special"))
    ax = found.plot()
    [image] = ax.images
    np.testing.assert_array_equal(image.get_array(), found.to_numpy().T)
    assert isinstance(image.norm, mpl.colors.LogNorm)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["·" + text.strip() for text in found.table["text"].to_pylist()]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("layer", "tokens of sequences 0 to 1")
    assert [line.get_xdata()[0] for line in ax.lines] == [14.5]  # between the sequences
    assert "l2 of resid_post (excluded: bos, special)" in ax.get_title()
    plt.gcf().canvas.draw()


def test_what_is_no_number_is_blank(random: RandomRun, doors: tuple[Lab, Lab]) -> None:
    found = doors[0].run("run").token_norms(range(12), "resid_post", exclude=())
    assert len(found) > LABELLED_TOKENS_MAX
    ax = found.plot()
    drawn = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert np.isnan(drawn[1, [3, 5]]).all()
    assert np.isnan(drawn).sum() == 2
    assert [label.get_text() for label in ax.get_xticklabels()] == [str(number) for number in range(12)]
    own = plt.subplots()[1]
    assert found.plot(own) is own


@pytest.mark.parametrize("site", [None, "resid_post"])
def test_what_is_not_named_is_drawn_of_resid_post(site: str | None, doors: tuple[Lab, Lab]) -> None:
    found = doors[0].run("run").token_norms(range(2))
    assert found.kinds == ("resid_pre", "resid_post")
    assert "l2 of resid_post (" in found.plot(site=site).get_title()


def test_many_tokens_of_one_sequence_have_their_positions(
    doors: tuple[Lab, Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actstore._norms.heat_maps.LABELLED_TOKENS_MAX", 10)
    monkeypatch.setattr("actstore._norms.heat_maps.TICKS_MAX", 4)
    ax = doors[0].run("planted").token_norms(range(1)).plot()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "5", "9", "13"]
    assert ax.get_xticks().tolist() == [0, 4, 8, 12]
    assert ax.get_xlabel() == "position in sequence 0"


def test_one_layer_is_a_line_a_sequence(doors: tuple[Lab, Lab]) -> None:
    found = doors[1].run("planted").token_norms(range(1, 3), "resid_post.1")
    ax = found.plot()
    first, second, _ = ax.lines
    np.testing.assert_array_equal(np.concatenate([first.get_ydata(), second.get_ydata()]), found.to_numpy()[:, 0])
    assert (first.get_xdata()[0], second.get_xdata()[0]) == (0, 4)
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "l2")
    assert "of resid_post.1 (excluded: bos)" in ax.get_title()


@pytest.mark.parametrize(("given", "expected"), [("1:3", (1, 2)), ("5:", (5, 6)), (":2", (0, 1)), ("4", (4,))])
def test_the_command(given: str, expected: tuple[int, ...], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["norms", "planted", "--by", "token", "--sequences", given, "--address", str(folder)]
    assert main([*arguments, "--json"]) == 0
    profile = json.loads(capsys.readouterr().out)["profile"]
    assert tuple(dict.fromkeys(row["sequence"] for row in profile["rows"])) == expected
    assert profile["excluded"] == ["bos"]
    assert main(arguments) == 0
    assert f"of {len(expected)} sequences at 3 sites" in capsys.readouterr().out


def test_the_command_draws_and_refuses(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--address", str(folder)]
    drawn = tmp_path / "tokens.png"
    assert main(["norms", "run", "--by", "token", "--sequences", "0:2", "--plot", str(drawn), *place]) == 0
    assert drawn.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["norms", "planted", "--by", "token", *place]) == 1
    assert "norms by token need one run and --sequences" in capsys.readouterr().err
    for more in (["planted", "--by", "token"], ["planted"]):
        assert main(["norms", "planted", *more, "--sequences", "0:2", *place]) == 1
        refused = capsys.readouterr().err
        assert "sequences" in refused
        assert "slice(" not in refused
    with pytest.raises(SystemExit):
        main(["norms", "planted", "--by", "token", "--sequences", "two", *place])
    assert "'two' is not FIRST:END, FIRST: or one number" in capsys.readouterr().err
