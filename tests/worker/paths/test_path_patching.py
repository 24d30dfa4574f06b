"""Paths against whole forward passes in which everything else is held, on every family; and what must hold of any."""

import random
from pathlib import Path

import pytest
import torch

from actstore_api.records.patching import RunSweep
from actstore_api.records.terms import ModelReference
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.receivers import find_receivers
from actstore_worker.patching.kernels.frozen_paths import FrozenPaths
from actstore_worker.patching.kernels.full import Cell, FullForward, Patch
from actstore_worker.patching.kernels.paths import Paths
from actstore_worker.patching.kernels.receivers import Receivers
from actstore_worker.patching.kernels.recording import Recording
from actstore_worker.patching.kernels.resumed import Resumed
from tests.made_models.small_models import ATTENTION_ONLY, SAVERS
from tests.worker.patching.recorded import two_runs
from tests.worker.paths.plain_paths import PlainPaths

LENGTH = 9
TOLERANCE = {"atol": 3e-5, "rtol": 0.0}
RECEIVERS = [
    ("q.2.1",), ("k.1.0",), ("v.2",), ("mlp_in.1",), ("q.1", "k.1.1", "v.1.0"), ("k.1.0", "q.2.3", "mlp_in.2"),
    ("mlp_in.0", "v.2.1", "q.1.0"),
]  # fmt: skip


@pytest.fixture(scope="module", params=SAVERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("models")
    SAVERS[request.param](folder / request.param)
    return load_model(ModelCatalog((folder,)).find_model(request.param), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def runs(model: LanguageModel) -> tuple[Recording, Recording]:
    return two_runs(model, LENGTH)


@pytest.fixture(scope="module")
def plain(model: LanguageModel, runs: tuple[Recording, Recording]) -> PlainPaths:
    return PlainPaths(model.module, *(run.tokens for run in runs))


def receivers_of(model: LanguageModel, asked: tuple[str, ...], *, through_mlps: bool) -> Receivers:
    mlps = "recomputed" if through_mlps else "frozen"
    found = find_receivers(model, RunSweep(ModelReference(""), (), receivers=asked, path_mlps=mlps))
    assert found is not None
    return found


def some_senders(model: LanguageModel, count: int, kinds: tuple[str, ...]) -> list[tuple[Cell, ...]]:
    """At one position, or at several."""
    rng, chosen = random.Random(0), []
    for number in range(count):
        kind, layer = kinds[number % len(kinds)], rng.randrange(model.layer_count)
        head = rng.randrange(model.head_count) if kind in ("z", "pattern") and number % 5 else None
        positions = sorted(rng.sample(range(LENGTH), 3 if number % 4 == 0 else 1))
        chosen.append(tuple(Cell(Site(layer, kind, head), position) for position in positions))
    return chosen


@pytest.mark.parametrize("through_mlps", [False, True])
@pytest.mark.parametrize("asked", RECEIVERS, ids="+".join)
def test_a_path_is_what_three_plain_runs_make_of_it(
    model: LanguageModel,
    runs: tuple[Recording, Recording],
    plain: PlainPaths,
    asked: tuple[str, ...],
    through_mlps: bool,
) -> None:
    base, source = runs
    receivers = receivers_of(model, asked, through_mlps=through_mlps)
    senders = some_senders(model, 10, ("resid_pre", "z", "attn_out", "mlp_out", "z"))
    patches = [Patch(base, source, cells) for cells in senders]
    found = Paths(model, receivers, Resumed(model)).run(patches)
    torch.testing.assert_close(found, FrozenPaths(model, receivers).run(patches), **TOLERANCE)
    places = [((site.layer, site.kind), site.head) for site in receivers.sites]
    for logits, cells in zip(found, senders, strict=True):
        site, positions = cells[0].site, [cell.position for cell in cells]
        expected = plain.patched((site.layer, site.kind), site.head, positions, places, through_mlps=through_mlps)
        torch.testing.assert_close(logits, expected, **TOLERANCE)


@pytest.mark.parametrize("through_mlps", [False, True])
def test_the_path_straight_to_the_logits(
    model: LanguageModel, runs: tuple[Recording, Recording], plain: PlainPaths, through_mlps: bool
) -> None:
    base, source = runs
    receivers = receivers_of(model, ("logits",), through_mlps=through_mlps)
    senders = some_senders(model, 12, ("resid_pre", "z", "attn_out", "mlp_out", "z", "resid_post"))
    senders += [(Cell(Site(layer, "z", 2), LENGTH - 1),) for layer in range(model.layer_count)]
    patches = [Patch(base, source, cells) for cells in senders]
    found = Paths(model, receivers, Resumed(model)).run(patches)
    torch.testing.assert_close(found, FrozenPaths(model, receivers).run(patches), **TOLERANCE)
    for logits, cells in zip(found, senders, strict=True):
        site, positions = cells[0].site, [cell.position for cell in cells]
        expected = plain.direct((site.layer, site.kind), site.head, positions, through_mlps=through_mlps)
        torch.testing.assert_close(logits, expected, **TOLERANCE)
        if LENGTH - 1 not in positions:
            assert torch.equal(logits, base.logits)


@pytest.mark.parametrize("asked", [("q.2", "v.1"), ("mlp_in.2",), ("logits",)], ids="+".join)
def test_kinds_that_plain_hooks_cannot_write(
    model: LanguageModel, runs: tuple[Recording, Recording], asked: tuple[str, ...]
) -> None:
    """Attention weights, and the middle of a block, which no module hands on."""
    base, source = runs
    kinds = ("pattern", "resid_mid", "resid_post") if "resid_mid" in model.kinds else ("pattern", "resid_post")
    patches = [Patch(base, source, cells) for cells in some_senders(model, 12, kinds)]
    receivers = receivers_of(model, asked, through_mlps=False)
    found = Paths(model, receivers, Resumed(model)).run(patches)
    torch.testing.assert_close(found, FrozenPaths(model, receivers).run(patches), **TOLERANCE)


def test_what_lies_behind_its_receivers_is_the_base_run_to_the_bit(
    model: LanguageModel, runs: tuple[Recording, Recording]
) -> None:
    base, source = runs
    receivers = receivers_of(model, ("q.1.0", "v.0.0"), through_mlps=True)
    sites = [Site(1, "attn_out"), Site(1, "z", 3), Site(2, "resid_pre"), Site(1, "mlp_out"), Site(2, "resid_post")]
    found = Paths(model, receivers, Resumed(model)).run([Patch(base, source, (Cell(site, 4),)) for site in sites])
    assert torch.equal(found, base.logits.expand_as(found))


def test_a_run_sends_nothing_to_itself(model: LanguageModel, runs: tuple[Recording, Recording]) -> None:
    base, _ = runs
    patches = [Patch(base, base, cells) for cells in some_senders(model, 20, ("resid_pre", "z", "attn_out", "mlp_out"))]
    found = Paths(model, receivers_of(model, ("q.2", "k.1"), through_mlps=False), Resumed(model)).run(patches)
    torch.testing.assert_close(found, base.logits.expand_as(found), **TOLERANCE)


def test_all_that_a_layer_reads_is_all_of_its_residual(model: LanguageModel, runs: tuple[Recording, Recording]) -> None:
    """At the first layer's attention: q, k and v of all heads are what resid_pre makes of it, and z is of them."""
    base, source = runs
    receivers = receivers_of(model, ("q.0", "k.0", "v.0"), through_mlps=False)
    everywhere = tuple(Cell(Site(0, "resid_pre"), position) for position in range(LENGTH))
    z = tuple(Cell(Site(0, "z"), position) for position in range(LENGTH))
    found = Paths(model, receivers, Resumed(model)).run([Patch(base, source, everywhere)])
    torch.testing.assert_close(found, FullForward(model).run([Patch(base, source, z)]), **TOLERANCE)


@pytest.mark.parametrize("asked", [("q.2.1", "k.1"), ("logits",)], ids="+".join)
@pytest.mark.parametrize("name", ATTENTION_ONLY)
def test_where_no_layer_has_an_mlp_none_is_held_or_computed(name: str, asked: tuple[str, ...], tmp_path: Path) -> None:
    """Nor can one receive."""
    ATTENTION_ONLY[name](tmp_path / name)
    model = load_model(ModelCatalog((tmp_path,)).find_model(name), device=torch.device("cpu"))
    base, source = two_runs(model, LENGTH)
    patches = [Patch(base, source, cells) for cells in some_senders(model, 8, ("z", "resid_pre", "attn_out"))]
    held, computed = (receivers_of(model, asked, through_mlps=through_mlps) for through_mlps in (False, True))
    expected = FrozenPaths(model, held).run(patches)
    for found in (
        FrozenPaths(model, computed).run(patches),
        *(Paths(model, receivers, Resumed(model)).run(patches) for receivers in (held, computed)),
    ):
        torch.testing.assert_close(found, expected, **TOLERANCE)
    with pytest.raises(BadRequest) as refusal:
        receivers_of(model, ("mlp_in.1",), through_mlps=False)
    assert (refusal.value.reason, refusal.value.details["field"]) == ("SITE_UNKNOWN", "receivers")
    assert "mlp_in" not in str(refusal.value.details["allowed"])
