"""Who calls, and what they may do: one bearer token for the whole service."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actstore_api.verbs import Verb
from actstore_storage.errors import ActstoreError


@dataclass(frozen=True)
class Principal:
    """Who calls."""

    name: str


class Access:
    """Without a token everybody is let in, which the settings allow on loopback only."""

    def __init__(self, token: str | None) -> None:
        self._expected = None if token is None else f"Bearer {token}".encode()

    def identify(self, headers: Mapping[str, str], certificate: Mapping[str, Sequence[bytes]]) -> Principal:
        """Errors: UNAUTHENTICATED."""
        presented = headers.get("authorization", "").encode()
        if self._expected is None or hmac.compare_digest(presented, self._expected):
            return Principal("everyone")
        raise ActstoreError(
            "this service requires a token, and the call had none or a wrong one",
            reason="UNAUTHENTICATED",
            field="authorization",
            allowed="Bearer <token>",
        )

    def permit(self, principal: Principal, verb: Verb, question: object) -> None:
        """Errors: PERMISSION_DENIED."""

    def visible(self, principal: Principal | None, verb: Verb, answer: Any) -> Any:
        """The answer without what the caller may not see."""
        return answer
