"""Why a caller is not known, and the error for each."""

from actstore_storage.errors import ActstoreError

ISSUER_AWAY = "the keys that tokens are checked with could not be fetched yet; try again later"
_MESSAGES = {
    "wrong": "this service requires a token, and the call had none or a wrong one",
    "cut": "the token is not whole: a part of it is missing or mistyped",
    "expired": "the token has expired",
    "certificate": "the client's certificate is of nobody whom this service knows",
}


def refused(why: str) -> ActstoreError:
    """The error for a caller that is not known; it never says anything of what was presented."""
    details = {"field": "authorization", "allowed": "Bearer <token>"} if why != "certificate" else {}
    return ActstoreError(_MESSAGES[why], reason="UNAUTHENTICATED", **details)
