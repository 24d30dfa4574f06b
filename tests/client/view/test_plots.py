"""What is drawn is what is in the tables."""

import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt

from actstore import BadRequest, Lab, MissingLibrary, PromptPair, Sweep
from tests.client.workers import saes
from tests.client.workers import stand_in as planted
from tests.stored_run import FIRING, SAE, SILENT


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def sweep(sites: tuple[str, ...] = planted.SITES) -> Sweep:
    return Sweep(
        table=planted.cells(sites),
        prompt_tokens=planted.tokens(),
        clean_logit_difference=planted.CLEAN_DIFFERENCE,
        corrupt_logit_difference=planted.CORRUPT_DIFFERENCE,
        provenance=saes.told(model="planted-model"),
        audit=planted.UNAUDITED,
        pairs=(PromptPair("", "", " Mary", " John"),),
    )


def test_norms_have_a_log_axis_a_band_and_the_fit_in_the_legend(lab: Lab) -> None:
    profile = lab.run("planted").norms(exclude=("bos", "special"))
    growth = lab.run("planted").fit_growth(exclude=("bos", "special"))
    ax = profile.plot(growth=growth)
    mean, fit = ax.lines
    columns = profile.to_arrow().to_pydict()
    np.testing.assert_array_equal(mean.get_xdata(), columns["layer"])
    np.testing.assert_array_equal(mean.get_ydata(), columns["mean"])
    np.testing.assert_array_equal(fit.get_ydata(), growth.to_arrow()["fitted"].to_pylist())
    corners = ax.collections[0].get_paths()[0].vertices
    assert {*columns["q0.05"], *columns["q0.95"]} <= set(corners[:, 1])
    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "layer", "L2 norm")
    assert "excluded: bos, special" in ax.get_title()
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "fit, resid_post: x1.5 a layer (R² 1.000, layers 0 to 2)" in legend
    assert "5% to 95%, resid_post" in legend


def test_norms_without_a_fit_and_of_too_few_layers(direct: Lab) -> None:
    run = direct.run("planted")
    assert len(run.norms().plot().lines) == 1
    assert len(run.norms(["resid_post.0", "resid_post.1"]).plot().lines) == 1


def test_norms_by_position_are_a_heat_map(lab: Lab) -> None:
    profile = lab.run("planted").norms(exclude=("bos", "special"), by="position", quantiles=())
    ax = profile.plot()
    drawn = ax.images[0].get_array()
    assert drawn.shape == (3, 16)
    for row in profile:
        assert drawn[row["layer"], row["position"]] == row["mean"]
    assert np.ma.getmaskarray(drawn)[:, 0].all() or np.isnan(drawn[:, 0]).all()
    assert "excluded: bos, special" in ax.get_title()


def test_pictures_say_that_no_sinks_were_looked_for(lab: Lab) -> None:
    run = lab.run("planted")
    profile = run.norms("resid_post", exclude=("bos", "sink"), histogram=3)
    by_position = run.norms("resid_post", exclude=("bos", "sink"), by="position")
    growth = run.fit_growth(exclude=("bos", "sink"))
    for ax in (
        profile.plot(),
        profile.plot_histogram(),
        growth.plot(),
        by_position.plot(),
    ):
        assert "(excluded: bos, sink (no sinks were looked for))" in ax.get_title()


def test_histograms_of_norms_have_a_line_a_layer(lab: Lab) -> None:
    profile = lab.run("planted").norms(exclude=("bos", "special"), histogram=6)
    ax = profile.plot_histogram()
    counts = profile.histogram["count"].to_numpy().reshape(3, 6)
    for layer, patch in enumerate(ax.patches):
        np.testing.assert_array_equal(patch.get_data().values, counts[layer])
    assert len(ax.patches) == 3
    assert ax.get_xscale() == "log"
    with pytest.raises(BadRequest, match="no 'mlp_out'"):
        profile.plot_histogram(site="mlp_out")


def test_other_quantities_are_named_on_their_axis(lab: Lab) -> None:
    ax = lab.run("planted").norms(quantity="rms").plot()
    assert (ax.get_ylabel(), len(ax.lines)) == ("rms", 1)


def test_growth_draws_points_and_line_into_the_given_axes(lab: Lab) -> None:
    ax = plt.subplots()[1]
    growth = lab.run("planted").fit_growth()
    assert growth.plot(ax) is ax
    points, line = ax.lines
    np.testing.assert_array_equal(points.get_ydata(), growth.points["mean"].to_pylist())
    np.testing.assert_array_equal(line.get_ydata(), growth.points["fitted"].to_pylist())


def test_a_histogram_has_a_bar_a_bin(lab: Lab) -> None:
    statistics = lab.run("planted").feature(SAE, FIRING).statistics(bins=7)
    ax = statistics.plot()
    rows = list(statistics)
    assert [bar.get_height() for bar in ax.patches] == [row["count"] for row in rows]
    assert [bar.get_x() for bar in ax.patches] == [row["low"] for row in rows]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("activation", "tokens")
    assert f"feature {FIRING} of {SAE}" in ax.get_title()


def test_a_feature_that_never_fires_draws_no_bars(direct: Lab) -> None:
    assert list(direct.run("planted").feature(SAE, SILENT).statistics().plot().patches) == []


def test_lens_bars_are_the_logits_from_the_top_down(remote: Lab) -> None:
    lens = remote.run("planted").features(SAE).logit_lens([FIRING, SILENT], 3)
    ax = lens.plot(feature=SILENT)
    ends = [*lens.end("top", SILENT), *reversed(lens.end("bottom", SILENT))]
    assert [bar.get_width() for bar in ax.patches] == [row["logit"] for row in ends]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["·top1", "·top2", "·top3", "·bottom3", "·bottom2", "·bottom1"]
    assert ax.yaxis_inverted()


def test_a_strip_has_the_change_of_each_token(remote: Lab, tmp_path: Path) -> None:
    ablation = remote.run("planted").feature(SAE, FIRING).ablate_text("say word6 $x$ word9")
    ax = ablation.plot()
    [shown] = ax.images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(shown, [np.nan, *(saes.effect(first) for first in (1, 2, 3, 4))])
    assert ax.images[0].get_clim() == (-saes.ACTIVATION, saes.ACTIVATION)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["<bos>", "say", "·word6", r"·\$x\$", "·word9"]
    assert [text.get_text() for text in ax.texts] == ["-0.5", "-0.75", "-1"]  # a tenth of the activation, and more
    ax.figure.savefig(tmp_path / "strip.png")


def test_pairs_make_a_square(remote: Lab) -> None:
    ablation = remote.run("planted").feature(SAE, FIRING).ablate_text("say word6 word9", pairs=True)
    shown = ablation.plot().images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(shown, shown.T)
    np.testing.assert_array_equal(np.diag(shown), [np.nan, *(saes.effect(first) for first in (1, 2, 3))])
    assert shown[1, 3] == saes.effect(1, 3)


def test_a_direction_is_a_strip_of_the_next_tokens(remote: Lab) -> None:
    ablation = remote.run("planted").feature(SAE, FIRING).ablate_direction("say word6 word9")
    ax = ablation.plot(plt.subplots()[1])
    np.testing.assert_array_equal(ax.images[0].get_array()[0], [row["change"] for row in ablation])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["say", "·word6", "·word9"]


def test_heat_maps_hold_the_cells() -> None:
    figure = sweep().plot()
    panels = figure.axes[:-1]
    assert len(panels) == 2 * 4
    for direction, row in zip(("denoise", "noise"), (panels[:4], panels[4:]), strict=True):
        for site, ax in zip(planted.SITES[:3], row, strict=False):
            shown = ax.images[0].get_array()
            expected = [
                [planted.normalized(direction, site, layer, position, None) for position in range(5)]
                for layer in range(3)
            ]
            np.testing.assert_array_equal(shown, expected)
            assert ax.get_title() == f"{direction}: {site}"
            assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1", "2"]
            assert ax.yaxis_inverted()  # layer 0 on top


def test_heads_show_their_strongest_position_or_the_chosen_one() -> None:
    for position, chosen in ((4, None), (2, 2)):
        ax = sweep().plot(z_position=chosen).axes[3]
        expected = [
            [planted.normalized("denoise", "z", layer, position, head) for head in range(2)] for layer in range(3)
        ]
        np.testing.assert_array_equal(ax.images[0].get_array(), expected)
        assert ax.get_xlabel() == "head"
    with pytest.raises(BadRequest, match="no position 9"):
        sweep().plot(z_position=9)


def test_a_strong_negative_beats_a_weak_positive_and_keeps_its_sign() -> None:
    import pyarrow as pa

    cells = planted.cells(("z",))
    values = cells["normalized"].to_numpy().copy()
    values[0] = -100.0  # denoise, layer 0, position 0, head 0
    planted_negative = cells.set_column(cells.column_names.index("normalized"), "normalized", pa.array(values))
    found = Sweep(**{**vars(sweep(("z",))), "table": planted_negative})
    assert found.plot().axes[0].images[0].get_array()[0][0] == -100.0


def test_all_panels_share_limits_symmetric_about_zero() -> None:
    figure = sweep().plot()
    strongest = np.abs(sweep().to_arrow()["normalized"].to_numpy()).max()
    assert {ax.images[0].get_clim() for ax in figure.axes[:-1]} == {(-strongest, strongest)}
    assert {ax.images[0].get_cmap().name for ax in figure.axes[:-1]} == {"RdBu_r"}
    assert "RdBu_r: red positive" in figure.axes[-1].get_xlabel()


def test_tokens_are_those_of_the_base_run_with_the_difference_in_bold() -> None:
    figure = sweep().plot()
    for ax, base in ((figure.axes[0], planted.CORRUPT), (figure.axes[4], planted.CLEAN)):
        labels = ax.get_xticklabels()
        assert [label.get_text() for label in labels] == [text.replace(" ", "·") for text in base]
        assert [label.get_fontweight() for label in labels] == ["normal", "normal", "bold", "normal", "normal"]


def test_the_figure_is_drawn_without_a_warning(tmp_path: Path) -> None:
    figure = sweep().plot()
    figure.savefig(tmp_path / "sweep.png")
    assert "'·Mary' over '·John'" in figure.get_suptitle()
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, direct: Lab) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingLibrary, match="pip install matplotlib pandas"):
        direct.run("planted").norms().plot()


def test_plotting_shows_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr(plt, "show", lambda *_: shown.append(1))
    sweep().plot()
    assert shown == []
