"""What paths cost, by hand: an MLP is eight twelfths of a layer, and a projection with and without the change two."""

from itertools import product

import pytest

from actstore_api.records.patching import RunSweep
from actstore_api.records.terms import ModelReference
from actstore_storage.format.sites import Site
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.receivers import RECEIVERS_MAX, find_receivers
from actstore_worker.patching.kernels.frozen_paths import FrozenPaths
from actstore_worker.patching.kernels.full import Cell, FullForward, Patch
from actstore_worker.patching.kernels.paths import Paths
from actstore_worker.patching.kernels.receivers import Receivers
from actstore_worker.patching.kernels.recording import Recording, record
from actstore_worker.patching.kernels.resumed import Resumed
from tests.worker.patching.recorded import every_site

LENGTH = 9
MLP, PROJECTION = 8 / 12, 2 / 12


def receivers_of(model: LanguageModel, asked: tuple[str, ...], *, through_mlps: bool) -> Receivers:
    mlps = "recomputed" if through_mlps else "frozen"
    found = find_receivers(model, RunSweep(ModelReference(""), (), receivers=asked, path_mlps=mlps))
    assert found is not None
    return found


def cells(kind: str, layer: int, *positions: int) -> tuple[Cell, ...]:
    return tuple(Cell(Site(layer, kind, 1 if kind == "z" else None), position) for position in positions)


def both_runs(model: LanguageModel) -> tuple[Recording, Recording]:
    prompts = range(1, 1 + LENGTH), range(20, 20 + LENGTH)
    base, source = (record(model, prompt, every_site(model)) for prompt in prompts)
    return base, source


# GPT-2's MLP reads what its attention wrote; that of parallel blocks reads what the attention reads.
@pytest.mark.parametrize(
    ("kind", "sent", "asked", "through_mlps", "way"),
    [
        ("gpt2", cells("z", 0, 4), ("q.2.1",), True, 2 * MLP + PROJECTION),
        ("gpt2", cells("z", 0, 4), ("q.2.1", "q.2.0"), False, PROJECTION),
        ("neox", cells("z", 0, 4), ("q.2.1",), True, MLP + PROJECTION),
        ("gpt2", cells("attn_out", 0, 3, 7), ("q.1", "k.1.1", "v.1", "mlp_in.2"), True, 2 * (3 * MLP + 3 * PROJECTION)),
        ("neox", cells("attn_out", 0, 3, 7), ("q.1", "k.1.1", "v.1", "mlp_in.2"), True, 2 * (2 * MLP + 3 * PROJECTION)),
        ("gpt2", cells("mlp_out", 0, 8), ("mlp_in.1", "v.0"), True, MLP),
        ("gpt2", cells("mlp_out", 0, 8), ("mlp_in.2", "mlp_in.1"), False, 2 * MLP),
        ("gpt2", cells("z", 1, 8), ("logits",), True, 2 * MLP),
        ("neox", cells("z", 1, 8), ("logits",), True, MLP),
        ("gpt2", cells("resid_pre", 0, 0), ("v.0",), True, PROJECTION),
        ("gpt2", cells("mlp_out", 2, 0), ("logits",), True, 0.0),
        ("gpt2", cells("attn_out", 1, 4), ("q.1.0",), True, 0.0),
        ("gpt2", (), ("q.1.0",), True, 0.0),
    ],
)
def test_a_path_costs_what_lies_between_and_then_a_patch_of_its_receivers(
    swept_models: dict[str, LanguageModel],
    kind: str,
    sent: tuple[Cell, ...],
    asked: tuple[str, ...],
    through_mlps: bool,
    way: float,
) -> None:
    """Of a sender that reaches none, nothing; a patch of nothing is run."""
    model = swept_models[kind]
    receivers = receivers_of(model, asked, through_mlps=through_mlps)
    received = receivers.cells(sent, LENGTH)
    paths = Paths(model, receivers, FullForward(model))
    expected = way + (LENGTH * model.layer_count if received or not sent else 0)
    assert paths.price(sent, LENGTH) == pytest.approx(expected)
    base, source = both_runs(model)
    paths.run([Patch(base, source, sent)] * 2)
    assert paths.count.computed == pytest.approx(2 * expected)
    assert paths.count.full == (2 * LENGTH * model.layer_count if received or not sent else 0)


def test_a_patch_of_receivers_costs_what_its_kernel_says(swept_models: dict[str, LanguageModel]) -> None:
    model = swept_models["gpt2"]
    receivers, kernel = receivers_of(model, ("q.2.1",), through_mlps=False), Resumed(model)
    sent = cells("z", 0, 4)
    found = Paths(model, receivers, kernel).price(sent, LENGTH)
    assert found == pytest.approx(PROJECTION + kernel.price((Cell(Site(2, "q", 1), 4),), LENGTH))


def test_the_slow_twin_runs_the_model_twice(swept_models: dict[str, LanguageModel]) -> None:
    model = swept_models["gpt2"]
    frozen = FrozenPaths(model, receivers_of(model, ("q.2.1",), through_mlps=False))
    base, source = both_runs(model)
    patches = [Patch(base, source, cells("z", 0, position)) for position in (3, 4)]
    frozen.run(patches)
    whole = LENGTH * model.layer_count
    assert sum(frozen.price(patch.cells, LENGTH) for patch in patches) == frozen.count.computed == 4 * whole
    assert frozen.count.full == 2 * whole


def test_a_receiver_is_held_where_something_was_sent_and_behind_another_from_there_on(
    swept_models: dict[str, LanguageModel],
) -> None:
    model, sent = swept_models["gpt2"], cells("attn_out", 0, 8, 1)
    alone = receivers_of(model, ("q.1",), through_mlps=False)
    assert alone.cells(sent, LENGTH) == (Cell(Site(1, "q"), 1), Cell(Site(1, "q"), 8))
    behind = receivers_of(model, ("q.1", "mlp_in.1"), through_mlps=False)  # what attention writes, this MLP reads
    assert behind.cells(sent, LENGTH)[2:] == cells("mlp_out", 1, *range(1, LENGTH))


def test_an_mlp_hears_its_attention_and_not_what_comes_out_of_its_layer(swept_models: dict[str, LanguageModel]) -> None:
    mlp = receivers_of(swept_models["gpt2"], ("mlp_in.1",), through_mlps=False)
    assert mlp.are_reached(cells("attn_out", 1, 4), LENGTH)
    assert not mlp.are_reached(cells("resid_post", 1, 4), LENGTH)


# When each is written or read within its layer, as a clock of five ticks a layer says it.
WRITTEN = {"resid_pre": 0, "pattern": 2, "z": 2, "attn_out": 2, "resid_mid": 2, "mlp_out": 4, "resid_post": 4}
READ = {"q": 1, "k": 1, "v": 1, "mlp_out": 3, "resid_post": 5}


@pytest.mark.parametrize("is_parallel", [False, True])
def test_a_receiver_hears_what_was_written_before_it_reads(*, is_parallel: bool) -> None:
    """The MLP of a parallel block reads when attention does. `mlp_out` and `resid_post` receive as MLP and logits."""
    read = READ | ({"mlp_out": READ["q"]} if is_parallel else {})
    for receiver, sender in product((Site(2, kind) for kind in READ), product(range(3), WRITTEN)):
        layer, kind = sender
        expected = 5 * layer + WRITTEN[kind] < 5 * receiver.layer + read[receiver.kind]
        receivers = Receivers((receiver,), is_parallel, through_mlps=False)
        assert receivers.hear(Site(*sender)) is expected, (receiver, sender)
        assert receivers.are_reached(cells(kind, layer, LENGTH - 1), LENGTH) is expected, (receiver, sender)


def test_logits_are_held_at_the_last_position_alone() -> None:
    logits = Receivers((Site(2, "resid_post"),), is_parallel=False, through_mlps=False)
    assert logits.cells(cells("z", 0, 3, LENGTH - 1), LENGTH) == cells("resid_post", 2, LENGTH - 1)
    assert logits.cells(cells("z", 0, 3, LENGTH - 2), LENGTH) == ()


def test_so_many_receivers_are_not_too_many(swept_models: dict[str, LanguageModel]) -> None:
    asked = ("q.1", "k.1") * (RECEIVERS_MAX // 2)
    assert receivers_of(swept_models["gpt2"], asked, through_mlps=True).sites == (Site(1, "q"), Site(1, "k"))
