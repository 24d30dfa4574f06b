"""Finds the sites that SAEs read and write from the names that projects use."""

import re

from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import INNER_KINDS, RESIDUAL_KINDS, Site, parse_site
from actstore_worker.sae.refusals import mismatch

# Kinds whose rows are vectors that a module passes on as a whole.
SAE_KINDS = (*RESIDUAL_KINDS, *INNER_KINDS, "z")
# TransformerLens's hook_mlp_in is before the norm, so it equals resid_mid.
_BEFORE_NORM = re.compile(r"blocks\.(\d{1,6})\.hook_mlp_in")
_WHY_NOT = {
    "ln1.hook_normalized": "no module of transformers returns a norm's output before its gain",
    "ln2.hook_normalized": "what a norm gives before its gain is handed on by no module of transformers; if the SAE "
    "reads it with the gain, say so in actstore.json: mlp_input",
    "mlp.hook_post": "the MLP's hidden layer is not captured",
}
# Within one layer, the input or output of a transformers module; for Gemma with Gemma's names.
_MODULES = {
    "output": "resid_post",
    "input": "resid_pre",
    "self_attn.o_proj.input": "z",
    "pre_feedforward_layernorm.output": "mlp_input",
    "mlp.input": "mlp_input",
    "post_feedforward_layernorm.output": "mlp_out",
}
_MODULE = re.compile(r"model\.layers\.(\d{1,6})\.(.+)")


def hook_site(hook: str, name: str, field: str = "hook_name", head: int | None = None) -> Site:
    """From TransformerLens's name. Errors: BadRequest SAE_MISMATCH for a site that is not captured."""
    if before := _BEFORE_NORM.fullmatch(hook):
        return Site(int(before[1]), "resid_mid")
    try:
        found = parse_site(hook, SAE_KINDS)
    except BadRequest as error:
        why = next((why for end, why in _WHY_NOT.items() if hook.endswith(end)), "that site is not captured")
        raise mismatch(name, field, hook, error.details["allowed"], why) from error
    if head is None:
        return found
    if found.kind != "z" or type(head) is not int or head < 0:
        raise mismatch(name, "hook_head_index", head, "a head of hook_z: 0 and above", f"it reads {found}")
    return Site(found.layer, found.kind, head)


def module_site(point: str, name: str, field: str) -> Site:
    """From the name of a transformers module and its side: `model.layers.3.output`. Errors: as `hook_site`."""
    found = _MODULE.fullmatch(point)
    if found is None or found[2] not in _MODULES:
        raise mismatch(name, field, point, [f"model.layers.N.{end}" for end in _MODULES], "that site is not captured")
    return Site(int(found[1]), _MODULES[found[2]])
