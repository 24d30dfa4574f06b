"""Why a caller is not known: results that a metric counts, and the error for each."""

from actstore_storage.errors import ActstoreError

ISSUER_AWAY = "the keys that tokens are checked with could not be fetched yet; try again later"
# The results of identifying a caller. The first four are how a caller became known.
RESULTS = ("token", "jwt", "certificate", "anonymous", "missing", "wrong", "expired", "unavailable")
_MESSAGES = {
    "missing": "this service requires a token, and the call had none or a wrong one",
    "wrong": "this service requires a token, and the call had none or a wrong one",
    "cut": "the token is not whole: a part of it is missing or mistyped",
    "expired": "the token has expired",
    "certificate": "the client's certificate is of nobody whom this service knows",
}


class Refused(ActstoreError):
    """A caller that is not known. `result` is one of RESULTS."""

    default_reason = "UNAUTHENTICATED"
    result = "wrong"


def refused(why: str) -> Refused:
    """The error for a caller that is not known; it never says anything of what was presented."""
    error = Refused(_MESSAGES[why], field="authorization", allowed="Bearer <token>")
    error.result = why if why in RESULTS and why != "certificate" else "wrong"
    return error
