"""The work of a shard, by which captures take turns."""

from actstore_storage.format.sites import parse_site
from actstore_storage.format.specification import RunRecord


def token_layers_per_shard(record: RunRecord) -> float:
    """Estimates the work of a shard in tokens times the layers that run. For encoding stored rows, an SAE counts as a
    layer.
    """
    asked = record.specification
    layers = len(asked.saes) if asked.rows_of else last_layer(record) + 1
    return max(1, layers) * record.tokens_total / record.shards_total


def last_layer(record: RunRecord) -> int:
    """The last layer that runs; -1 if none does."""
    asked = record.specification
    named = [*asked.dense_sites, *asked.norm_sites, *(sae.site for sae in asked.saes)]
    return max((parse_site(site).layer for site in named), default=-1)
