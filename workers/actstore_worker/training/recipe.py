"""The definition of a training, checked before its rows are read."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from actstore_storage.bucket import check_name
from actstore_storage.errors import BadRequest, CorruptObject
from actstore_storage.format.keys import statistics_product, storage_name, training_key
from actstore_storage.format.records import seal, unseal
from actstore_storage.format.sites import INNER_KINDS, RESIDUAL_KINDS, Site, parse_site
from actstore_storage.format.tokens import TOKEN_CLASSES
from actstore_storage.runs.snapshot import Snapshot

# The sparsity parameter of each architecture: how many features of a row are active (topk), or on average over a batch
# (batchtopk); else the coefficient of a penalty that is added to the squared error, which is summed over a row's
# elements: l1 of activations times the norms of their decoder rows, l0 of the number of active features.
SPARSITY: Mapping[str, str] = {"standard": "l1", "gated": "l1", "topk": "k", "batchtopk": "k", "jumprelu": "l0"}
# Sites whose rows are whole vectors, for which an SAE can be loaded again.
TRAINED_KINDS = (*RESIDUAL_KINDS, *INNER_KINDS, "z")
WIDTH_MAX = 1 << 20
BATCH_ROWS_MAX = 1 << 20
# The default number of steps between two checkpoints.
CHECKPOINT_STEPS = 1000


@dataclass(frozen=True)
class Training:
    """Everything that affects the resulting SAE. Two equal ones are the same training, and the second continues where
    the first stopped.

    `sparsity` is what SPARSITY names. `rows` are the rows trained on in total, over as many epochs as that takes.
    """

    name: str
    run: str
    specification_sha256: str
    site: str
    architecture: str
    width: int
    sparsity: float
    rows: int
    batch_rows: int = 4096
    learning_rate: float = 3e-4
    seed: int = 0
    # Token classes whose rows are left out: BOS has a much larger norm than all others, and always the same direction.
    exclude: tuple[str, ...] = ("bos",)
    # Whether rows are scaled by one factor to a mean norm of sqrt(d) during training (Anthropic, April 2024 update),
    # and the factor is folded into the weights at the end.
    normalise: bool = True
    # One in this many sequences is held out, and the SAE is measured on those.
    held_out_every: int = 50
    # A feature that has not fired for this many steps counts as dead.
    dead_after_steps: int = 1000

    def __post_init__(self) -> None:
        storage_name(self.name, "name")
        check_name(statistics_product(self.name), "name")  # The longest name that contains it.
        if self.architecture not in SPARSITY:
            raise _refused("architecture", self.architecture, SPARSITY)
        _check_range("width", self.width, 1, WIDTH_MAX)
        _check_range("batch_rows", self.batch_rows, 1, BATCH_ROWS_MAX)
        _check_range("rows", self.rows, self.batch_rows, None)
        _check_range("held_out_every", self.held_out_every, 2, None)
        _check_range("dead_after_steps", self.dead_after_steps, 1, None)
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise _refused("learning_rate", self.learning_rate, "above 0")
        for name in self.exclude:
            if name not in TOKEN_CLASSES:
                raise _refused("exclude", name, TOKEN_CLASSES)
        self._check_sparsity()

    @property
    def steps(self) -> int:
        return self.rows // self.batch_rows

    @property
    def place(self) -> Site:
        return parse_site(self.site)

    def _check_sparsity(self) -> None:
        kind, value = SPARSITY[self.architecture], self.sparsity
        if not (math.isfinite(value) and value > 0):
            raise _refused(kind, value, "above 0")
        if kind == "k" and value > self.width:
            raise _refused("k", value, f"at most the width, {self.width}")
        if self.architecture == "topk" and value != int(value):
            raise _refused("k", value, "a whole number; use batchtopk for an average")

    def to_json(self) -> bytes:
        return seal(asdict(self))

    @classmethod
    def from_json(cls, data: bytes, key: str) -> "Training":
        """Reads a training. Errors: CorruptObject, also for the training of another SAE."""
        found = unseal(data, key, lambda fields: cls(**fields | {"exclude": tuple(fields["exclude"])}))
        if training_key(found.name) != key:
            raise CorruptObject(f"{key} holds the training of {found.name}", field="object", value=key)
        return found

    def differences(self, other: "Training") -> list[str]:
        """The differences in words, field by field."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return [f"{name} is {mine!r}, not {theirs!r}" for name, mine, theirs in pairs if mine != theirs]


def check_rows(snapshot: Snapshot, site: str) -> Site:
    """Checks that the run is complete and has the rows. Errors: BadRequest with field, value and what is allowed."""
    record, stored = snapshot.record, snapshot.record.specification.dense_sites
    found = parse_site(site, TRAINED_KINDS, record.layer_count)
    if str(found) not in stored or found.head is not None:
        raise BadRequest(
            f"run {record.run} does not store {site} as dense rows",
            reason="SITE_UNKNOWN",
            field="site",
            value=site,
            allowed=[name for name in stored if parse_site(name).kind in TRAINED_KINDS] or "none: it stores no site",
        )
    if not snapshot.complete:
        raise BadRequest(
            f"run {record.run} has {len(snapshot.commits)} of its {record.shards_total} shards",
            field="run",
            value=record.run,
            allowed="a complete run: finish its capture first",
        )
    return found


def _check_range(field: str, value: int, least: int, most: int | None) -> None:
    if value < least or (most is not None and value > most):
        raise _refused(field, value, f"{least} or more" if most is None else f"{least}..{most}")


def _refused(field: str, value: object, allowed: object) -> BadRequest:
    return BadRequest(f"{field} cannot be {value!r}", field=field, value=value, allowed=allowed)
