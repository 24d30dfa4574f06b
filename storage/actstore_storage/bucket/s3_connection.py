"""Finds the proxy for an S3 endpoint, and explains errors of connections and requests.

Messages name settings both as in S3Access and as environment variables, ACTSTORE_S3_ENDPOINT and so on.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from actstore_storage.errors import BadRequest, StoreError, StoreUnreachable

# S3's error codes in lower case, grouped by what to do.
NO_OBJECT = "nosuchkey"
_NO_BUCKET = {"nosuchbucket", "invalidbucketname"}
_CREDENTIALS = {
    "expiredtoken",
    "invalidaccesskeyid",
    "invalidclienttokenid",
    "invalidtoken",
    "signaturedoesnotmatch",
}
_SKEWED = {"requesttimetooskewed"}
_DENIED = {"accessdenied", "allaccessdisabled", "methodnotallowed"}
_FULL = {"insufficientstorage", "quotaexceeded", "xminiostoragefull"}
# Errors that go away: the store is busy or starting, or something was lost on the way.
_TRY_AGAIN = {
    "baddigest",
    "busy",
    "conditionalrequestconflict",
    "errrequestbytesexceed",
    "errtoomanyrequest",
    "incompletebody",
    "internalerror",
    "internalfailure",
    "nosuchupload",
    "operationaborted",
    "requesttimeout",
    "serverbusy",
    "serviceunavailable",
    "slowdown",
    "slowdownread",
    "slowdownwrite",
    "temporaryredirect",
    "throttling",
    "throttlingexception",
    "toomanyrequests",
    "xminioservernotinitialized",
}
# S3's codes are one word. These are codes of its clients, for no answer, or for an answer without a code.
_CODE = re.compile(r"[a-z0-9]+")
_NO_CODE = {"endpointresolutionfailure", "networkconnection", "none", "resourcenotfound", "unknown"}
# Patterns of the error texts of minio and pyarrow.
_PLAIN_HTTP = re.compile(r"wrong.version.number|record layer failure|packet length too long|unknown protocol", re.I)
# The first is TLS's alert, the others are texts of servers and clients about HTTP on a TLS port.
_TLS = re.compile(r"\\x15\\x03|HTTP/0\.9|to an HTTPS server|to HTTPS port", re.I)
_OTHER_REGION = {"authorizationheadermalformed", "permanentredirect", "illegallocationconstraintexception", "http 301"}
# The code for an answer that S3's own client cannot parse.
NO_S3_ANSWER = "no XML of S3's"
_NO_S3 = re.compile(rf"http 4(?!08|29)\d\d|resourcenotfound|{NO_S3_ANSWER}")
_WORDS = (
    (re.compile(r"ProxyError|curlCode: (5|97)\b|CONNECT tunnel"), "the proxy {proxy} could not connect to it"),
    (
        re.compile(r"certificate", re.I),
        "its certificate is not trusted: install its certificate authority on this machine",
    ),
    (re.compile("too many redirects"), "it redirects requests to another address: use that address"),
    (re.compile(r"resolve|NameResolution", re.I), "the host name is unknown"),
    (re.compile(r"refused|curlCode: 7\b", re.I), "nothing listens there"),
    (re.compile(r"timed? ?out|curlCode: 28\b", re.I), "it does not answer in time"),
    (
        re.compile(r"reset by peer|RemoteDisconnected|curlCode: (52|56)\b"),
        "it closed the connection, as some servers do if {scheme}",
    ),
)


@dataclass(frozen=True)
class Asked:
    """The store and bucket of a request, and whether it was a write."""

    address: str
    bucket: str
    writing: bool


@dataclass(frozen=True)
class Reached:
    endpoint: str
    secure: bool
    region: str
    proxy: str | None


def proxy_for(endpoint: str, *, secure: bool) -> str | None:
    """Returns the proxy according to http_proxy, https_proxy, all_proxy and no_proxy; never one for this machine
    itself.

    Errors: BadRequest for a proxy that is not an HTTP proxy.
    """
    host = _host(endpoint)
    if is_loopback(host) or proxy_bypass(host):
        return None
    named = getproxies()
    proxy = named.get("https" if secure else "http") or named.get("all")
    if proxy is None:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise BadRequest(
            f"the S3 store at {endpoint} would be reached through {_without_secret(proxy)}, but only HTTP proxies are "
            "supported: set https_proxy, or name the host in no_proxy",
            field="all_proxy",
            value=_without_secret(proxy),
            allowed="http://host:port, or none",
        )
    return proxy


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def store_failure(asked: Asked, reached: Reached, error: Exception, code: str) -> StoreError:
    """Returns the error to raise. It is a StoreUnreachable only if retrying may help; if the store itself answered, its
    code decides.
    """
    said = _of_access(asked, code) or _of_a_setting(asked.address, reached, str(error), code)
    if said is not None:
        return said
    if _CODE.fullmatch(code) and code not in _NO_CODE | _TRY_AGAIN:
        message = f"{asked.address} rejected the request, and retrying would not help ({code})"
        return StoreError(message, reason="STORE_UNSAFE", field="store", value=asked.address)
    return _unreachable(asked.address, reached, str(error), code)


def _of_access(asked: Asked, code: str) -> StoreError | None:
    """None if the code says nothing about the bucket, or about permissions."""
    address, where = asked.address, {"field": "store", "value": asked.address}
    if code in _NO_BUCKET:
        return StoreError(f"there is no bucket {asked.bucket}", reason="STORE_NOT_FOUND", **where)
    if code in _SKEWED:
        message = f"{address} rejects requests from this machine, because its clock differs from the store's ({code})"
        return StoreError(message, reason="STORE_CREDENTIALS", field="clock", allowed="the store's time")
    if code in _CREDENTIALS or (code in _DENIED and not asked.writing):
        return StoreError(f"{address} refuses these credentials ({code})", reason="STORE_CREDENTIALS", **where)
    if code in _DENIED:
        message = f"these credentials may not write to {address} ({code})"
        return StoreError(message, reason="STORE_NOT_WRITABLE", **where)
    if code in _FULL:
        return StoreError(f"{address} is full ({code})", reason="STORE_FULL", **where)
    return None


def _unreachable(address: str, reached: Reached, said: str, code: str) -> StoreUnreachable:
    endpoint = reached.endpoint
    words = next((f"{words}, " for pattern, words in _WORDS if pattern.search(said)), "")
    if _NO_S3.fullmatch(code):
        words = "the server there is not an S3 store, "
    scheme = (
        "they get TLS where they expect plain HTTP"
        if reached.secure
        else "they expect TLS: set ACTSTORE_S3_SECURE=1 then"
    )
    where = f"{endpoint}, from ACTSTORE_S3_ENDPOINT" if words else endpoint
    why = words.format(proxy=_without_secret(reached.proxy or ""), scheme=scheme) + code
    message = f"{address} cannot be reached at {where} ({why})"
    return StoreUnreachable(message, field="store", value=address)


def _of_a_setting(address: str, reached: Reached, said: str, code: str) -> StoreError | None:
    """None if no setting is known to be wrong."""
    endpoint = reached.endpoint
    if reached.secure and _PLAIN_HTTP.search(said):
        return _wrong_setting(
            f"{endpoint}, the endpoint of {address}, speaks plain HTTP but was called over TLS: set "
            "ACTSTORE_S3_SECURE=0, or "
            "secure=False", "secure", "True", "False",
        )  # fmt: skip
    if not reached.secure and _TLS.search(said):
        return _wrong_setting(
            f"{endpoint}, the endpoint of {address}, speaks TLS but was called over plain HTTP: set "
            "ACTSTORE_S3_SECURE=1, or "
            "secure=True", "secure", "False", "True",
        )  # fmt: skip
    if code in _OTHER_REGION:
        return _wrong_setting(
            f"{address} is not in the region {reached.region}, or this access key is unknown there ({code}): set "
            "ACTSTORE_S3_REGION, or region=", "region", reached.region, "the region that the store is in",
        )  # fmt: skip
    return None


def _wrong_setting(message: str, field: str, value: str, allowed: str) -> StoreError:
    return StoreError(message, reason="STORE_NOT_FOUND", field=field, value=value, allowed=allowed)


def _host(endpoint: str) -> str:
    return urlsplit(f"//{endpoint}").hostname or ""


def _without_secret(proxy: str) -> str:
    """Removes a password from a proxy's address."""
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
