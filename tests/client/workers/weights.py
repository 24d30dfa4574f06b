"""What a stand-in says of weights: by the contract, growing by a rate that can be told."""

import pyarrow as pa

from actstore_api.records import model
from tests.client.workers.saes import told

LAYERS, HEADS, RATE = 3, 2, 1.25


class StandInWeights:
    def GetWeightNorms(self, asked, context):
        layers = list(asked.layers) or list(range(LAYERS))
        rows = [_row(layer, "W_OV", head) for layer in layers for head in range(HEADS)]
        rows += [_row(layer, "W_in", None) for layer in layers] + [_row(None, "W_E", None)]
        inputs = ("gaussian", "normalized", "text") if asked.text else ("gaussian", "normalized")
        sublayers = [_sublayer(layer, name, given) for layer in layers for name in ("attn", "mlp") for given in inputs]
        return model.GetWeightNormsAnswer(
            weights=pa.Table.from_pylist(rows),
            sublayers=pa.Table.from_pylist(sublayers),
            provenance=told(model=asked.model.name, model_revision=asked.model.revision),
        )


def _row(layer: int | None, component: str, head: int | None) -> dict:
    norm = 2.0 * RATE ** (layer or 0)
    folded = None if component == "W_E" else 2 * norm
    sizes = {"rows": 8, "columns": 8, "frobenius": norm, "spectral": norm / 2}
    place = {"layer": layer, "component": component, "head": head}
    return place | sizes | {"frobenius_folded": folded, "spectral_folded": folded}


def _sublayer(layer: int, name: str, given: str) -> dict:
    expected = None if given == "text" else 3.0 * RATE**layer
    active = None if name == "attn" else 0.5
    place = {"layer": layer, "sublayer": name, "input": given}
    sampled = {"expected": expected, "sampled": 3.0 * RATE**layer, "standard_error": 0.1}
    return place | sampled | {"active_expected": None if given == "text" else active, "active_sampled": active}
