"""Variables and keys that no process knows are refused: a limit with a typing error would not hold, silently."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from actstore_storage.errors import SettingsError
from actstore_storage.settings.described import PREFIX

CONFIG = "ACTSTORE_CONFIG"
# For each Service of its namespace, Kubernetes sets variables in every pod, named after the Service: one that is called
# actstore-service has ACTSTORE_SERVICE_PORT. They are nobody's typing errors.
_OF_KUBERNETES = re.compile(
    r"[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_ADDRESS_OF_KUBERNETES = re.compile(r"(tcp|udp|sctp)://\S+:\d+")
# The share of equal letters from which a name is a typing error of another.
_CLOSE = 0.85
# What the repository's own tests read: a trainer that they start inherits it.
_TESTS = ("ACTSTORE_FAULT_", "ACTSTORE_FUZZ_")


def unknown_variables(environment: Mapping[str, str], known: Iterable[str]) -> set[str]:
    """The variables with actstore's prefix that are not known."""
    ours = {name for name, value in environment.items() if name.startswith(PREFIX) and value}
    left = {name for name in ours - {*known, CONFIG} if not name.startswith(_TESTS)}
    return {name for name in left if not is_of_kubernetes(name, environment[name])}


def is_of_kubernetes(name: str, value: str) -> bool:
    """Whether Kubernetes set the variable, and not an operator."""
    if name.endswith("_PORT") and _ADDRESS_OF_KUBERNETES.fullmatch(value):
        return True
    return bool(_OF_KUBERNETES.fullmatch(name))


def refuse_unknown(unknown: Iterable[str], known: Iterable[str], where: str, *, all_known: bool) -> None:
    """Refuses the first of them, with the known name that is closest to it. Unless all names are known, it refuses only
    what is close to one.
    """
    for name in sorted(unknown):
        for close in get_close_matches(name, sorted(known), n=1, cutoff=0 if all_known else _CLOSE):
            raise SettingsError(
                f"{name} in {where} is no setting of any process of actstore; the closest is {close}",
                field=name,
                allowed=close,
            )
