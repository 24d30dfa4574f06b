"""What S3's codes and its clients' words mean to whoever asked, and through which proxy a store is asked."""

import pytest

from actstore_storage.bucket.s3_connection import Asked, Reached, is_loopback, proxy_for, store_failure
from actstore_storage.errors import BadRequest, StoreError, StoreUnreachable

READING, WRITING = (Asked("s3://bucket/p", "bucket", writing) for writing in (False, True))
PLAIN = Reached("host:9000", secure=False, region="us-east-1", proxy="http://name:password@proxy:3128")
TLS = Reached("host:9000", secure=True, region="us-east-1", proxy=None)

# As AWS, MinIO, SeaweedFS and Ceph spell them.
CREDENTIALS = "ExpiredToken InvalidAccessKeyId InvalidClientTokenId InvalidToken SignatureDoesNotMatch"
DENIED = "AccessDenied AllAccessDisabled MethodNotAllowed"
PASSING = (
    "BadDigest Busy ConditionalRequestConflict ErrRequestBytesExceed ErrTooManyRequest IncompleteBody InternalError "
    "InternalFailure NoSuchUpload OperationAborted RequestTimeout ServerBusy ServiceUnavailable SlowDown SlowDownRead "
    "SlowDownWrite TemporaryRedirect Throttling ThrottlingException TooManyRequests XMinioServerNotInitialized"
)
NO_CODES = "EndpointResolutionFailure NetworkConnection None ResourceNotFound Unknown"
OTHER_REGION = "AuthorizationHeaderMalformed PermanentRedirect IllegalLocationConstraintException"

MEANT = [
    *(
        (code, READING, "STORE_NOT_FOUND", "there is no bucket bucket")
        for code in ("NoSuchBucket", "InvalidBucketName")
    ),
    *((code, READING, "STORE_CREDENTIALS", "refuses these credentials") for code in f"{CREDENTIALS} {DENIED}".split()),
    *((code, WRITING, "STORE_CREDENTIALS", "refuses these credentials") for code in CREDENTIALS.split()),
    *((code, WRITING, "STORE_NOT_WRITABLE", "may not write to") for code in DENIED.split()),
    *(
        (code, WRITING, "STORE_FULL", "is full")
        for code in ("InsufficientStorage", "QuotaExceeded", "XMinioStorageFull")
    ),
    *((code, READING, "STORE_UNREACHABLE", "cannot be reached") for code in f"{PASSING} {NO_CODES}".split()),
    ("EntityTooLarge", WRITING, "STORE_UNSAFE", "would not help (entitytoolarge)"),
    ("NotImplemented", READING, "STORE_UNSAFE", "would not help (notimplemented)"),
]


@pytest.mark.parametrize(("code", "asked", "reason", "said"), MEANT)
def test_what_a_code_means(code: str, asked: Asked, reason: str, said: str) -> None:
    failure = store_failure(asked, PLAIN, ValueError("m"), code.lower())
    assert (failure.reason, isinstance(failure, StoreUnreachable)) == (reason, reason == "STORE_UNREACHABLE")
    assert said in failure.message
    assert failure.details == {"field": "store", "value": "s3://bucket/p"}


def test_a_clock_is_named_as_the_setting_that_is_wrong() -> None:
    failure = store_failure(READING, PLAIN, ValueError("m"), "requesttimetooskewed")
    assert failure.reason == "STORE_CREDENTIALS"
    assert failure.details == {"field": "clock", "allowed": "the store's time"}


def _setting(failure: StoreError) -> tuple[str, ...]:
    assert failure.reason == "STORE_NOT_FOUND"
    assert not isinstance(failure, StoreUnreachable)
    return tuple(failure.details[name] for name in ("field", "value", "allowed"))


@pytest.mark.parametrize(
    "said",
    [
        "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)",
        "[SSL] record layer failure (_ssl.c:1006)",
        "[SSL: PACKET_LENGTH_TOO_LONG] packet length too long",
        "error:140770FC:SSL routines:SSL23_GET_SERVER_HELLO:unknown protocol",
    ],
)
def test_tls_to_plain_http_is_a_wrong_setting_and_nothing_of_plain_http_is(said: str) -> None:
    assert _setting(store_failure(READING, TLS, OSError(said), "none")) == ("secure", "True", "False")
    assert isinstance(store_failure(READING, PLAIN, OSError(said), "none"), StoreUnreachable)


@pytest.mark.parametrize(
    "said",
    [
        r"BadStatusLine('\x15\x03\x03\x00\x02\x02F')",
        "Received HTTP/0.9 when not allowed",
        "Client sent an HTTP request to an HTTPS server.",
        "The plain HTTP request was sent to HTTPS port",
    ],
)
def test_plain_http_to_tls_is_a_wrong_setting_and_nothing_of_tls_is(said: str) -> None:
    assert _setting(store_failure(READING, PLAIN, OSError(said), "none")) == ("secure", "False", "True")
    assert isinstance(store_failure(READING, TLS, OSError(said), "none"), StoreUnreachable)


@pytest.mark.parametrize("code", [*OTHER_REGION.split(), "http 301"])
def test_another_region_is_a_wrong_setting(code: str) -> None:
    failure = store_failure(READING, PLAIN, ValueError("m"), code.lower())
    assert _setting(failure) == ("region", "us-east-1", "the region that the store is in")


NO_PROXY_THERE = "the proxy http://proxy:3128 could not connect to it, "
HANGS_UP = "it closed the connection, as some servers do if they expect TLS: set ACTSTORE_S3_SECURE=1 then, "
WORDS = {
    "ProxyError('Cannot connect to proxy.', ConnectionRefusedError())": NO_PROXY_THERE,
    "curlCode: 5, Couldn't resolve proxy name": NO_PROXY_THERE,
    "curlCode: 97, proxy handshake error": NO_PROXY_THERE,
    "CONNECT tunnel failed, response 403": NO_PROXY_THERE,
    "certificate verify failed: self-signed": "its certificate is not trusted: install its certificate "
    "authority on this machine, ",
    "too many redirects": "it redirects requests to another address: use that address, ",
    "curlCode: 6, Couldn't resolve host name": "the host name is unknown, ",
    "NameResolutionError('host')": "the host name is unknown, ",
    "[Errno 111] Connection refused": "nothing listens there, ",
    "curlCode: 7, Couldn't connect to server": "nothing listens there, ",
    "Read timed out.": "it does not answer in time, ",
    "curlCode: 28, Operation too slow": "it does not answer in time, ",
    "Connection reset by peer": HANGS_UP,
    "RemoteDisconnected('Remote end closed connection')": HANGS_UP,
    "curlCode: 52, Server returned nothing": HANGS_UP,
    "curlCode: 56, Failure when receiving data": HANGS_UP,
}


@pytest.mark.parametrize("said", WORDS)
def test_why_a_store_is_not_reached_is_said_and_which_setting_that_may_be(said: str) -> None:
    failure = store_failure(READING, PLAIN, OSError(said), "none")
    where = "host:9000, from ACTSTORE_S3_ENDPOINT"
    assert failure.message == f"s3://bucket/p cannot be reached at {where} ({WORDS[said]}none)"


@pytest.mark.parametrize("said", ["curlCode: 77, a bad file", "curlCode: 55, could not send", "odd"])
def test_of_an_unknown_cause_only_its_code_is_said(said: str) -> None:
    failure = store_failure(READING, PLAIN, OSError(said), "networkconnection")
    assert failure.message == "s3://bucket/p cannot be reached at host:9000 (networkconnection)"


def test_who_hangs_up_on_tls_is_told_with_that() -> None:
    failure = store_failure(READING, TLS, OSError("Connection reset by peer"), "none")
    assert (
        "(it closed the connection, as some servers do if they get TLS where they expect plain HTTP, none)"
        in failure.message
    )


@pytest.mark.parametrize(
    ("code", "store"),
    [
        ("http 400", False),
        ("http 404", False),
        ("resourcenotfound", False),
        ("no XML of S3's", False),
        ("http 408", True),
        ("http 429", True),
        ("http 502", True),
    ],
)
def test_what_is_no_store_is_told_from_a_store_that_is_busy(code: str, store: bool) -> None:
    failure = store_failure(READING, PLAIN, ValueError("m"), code)
    assert isinstance(failure, StoreUnreachable)
    why = "host:9000" if store else "host:9000, from ACTSTORE_S3_ENDPOINT"
    said = "" if store else "the server there is not an S3 store, "
    assert failure.message == f"s3://bucket/p cannot be reached at {why} ({said}{code})"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for spelled in (name, name.upper()):
            monkeypatch.delenv(spelled, raising=False)
    return monkeypatch


def test_each_scheme_has_its_proxy_and_one_for_all_is_for_the_other(environment: pytest.MonkeyPatch) -> None:
    assert [proxy_for("host:9000", secure=secure) for secure in (True, False)] == [None, None]
    environment.setenv("all_proxy", "http://all:1")
    environment.setenv("https_proxy", "https://tls:2")
    assert [proxy_for("host:9000", secure=secure) for secure in (True, False)] == ["https://tls:2", "http://all:1"]
    environment.setenv("http_proxy", "plain:3")  # as curl reads it
    assert [proxy_for("host:9000", secure=secure) for secure in (True, False)] == ["https://tls:2", "http://plain:3"]


@pytest.mark.parametrize("endpoint", ["localhost:1", "127.0.0.1", "127.9.9.9:1", "[::1]:1", "far:1", "a.far:1"])
def test_neither_this_machine_nor_what_no_proxy_names_has_one(endpoint: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", "http://proxy:1")
    environment.setenv("no_proxy", "far")
    assert proxy_for(endpoint, secure=False) is None
    assert proxy_for("10.0.0.1:1", secure=False) == "http://proxy:1"


def test_a_proxy_of_another_kind_is_refused_without_its_password(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("all_proxy", "socks5://name:password@proxy:1")
    with pytest.raises(BadRequest, match="socks5://proxy:1") as caught:
        proxy_for("host", secure=True)
    assert caught.value.details == {
        "field": "all_proxy",
        "value": "socks5://proxy:1",
        "allowed": "http://host:port, or none",
    }


def test_what_this_machine_is() -> None:
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1")] == [True] * 4
    assert [is_loopback(host) for host in ("10.0.0.1", "::2", "localhost.example", "")] == [False] * 4
