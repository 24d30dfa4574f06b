"""The variables of the environment that the client reads, as `ACTSTORE_ADDRESS`; the settings page is made from these.

`connect` and the command read them. A service and workers in the same environment know them by this list.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ClientVariables:
    address: str = "the stack that runs here"
    """Address that `actstore.connect()` and the command use: `host:port` of a service, a folder, or
    `s3://bucket/prefix`."""
    token: str | None = field(default=None, repr=False)
    """The token that the client sends to a service, if `connect` gets no `token`."""
    token_file: str | None = None
    """A file with that token, which is read again when it changes. `ACTSTORE_TOKEN` counts before it."""
    tls: bool | None = None
    """Whether the client encrypts its connection to a service (1) or not (0), if `connect` gets no `tls`. Without
    either, a token is sent to this machine only. It does not count for a stack that runs here: that has no TLS."""
    root_certificates: str = "those of gRPC"
    """File with the root certificates, in PEM form, with which the client verifies a service over TLS. For a lab with
    a certificate authority of its own. It does not count for a stack that runs here."""
    client_certificate: str | None = None
    """File with a certificate of the client's own, in PEM, for a service with mutual TLS. It is read again when it
    changes. It does not count for a stack that runs here."""
    client_key: str | None = None
    """File with the key of that certificate, in PEM."""
    authority: str = "the host of the address"
    """The name that the certificate of a service must have, if that is not the host of its address. It does not count
    for a stack that runs here."""
