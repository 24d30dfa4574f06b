"""The certificates that the service shows, read again before each handshake, and the authorities of its clients."""

from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from actstore_service.access.reloading import Reloaded
from actstore_storage.errors import BadRequest

FIELD = "ACTSTORE_TLS_CERTIFICATE"


@dataclass(frozen=True)
class ServerFiles:
    """A certificate with its chain, its key, and for mutual TLS the authorities of clients; all in PEM."""

    chain: bytes
    key: bytes
    authorities: bytes | None
    expires_seconds: float
    """When the certificate expires, in seconds since 1970."""


class ServerCertificates:
    """The credentials of one port. With `authorities`, each client needs a certificate that one of them signed.

    gRPC asks for the files before each handshake. Connections that are open stay open. Files that are broken, or whose
    key does not belong to the certificate, leave the old ones in use.
    """

    def __init__(self, certificate: str | Path, key: str | Path, authorities: str | Path | None = None) -> None:
        paths = [certificate, key, *([authorities] if authorities is not None else [])]
        self._files = Reloaded(FIELD, paths, read_server_files, check_seconds=0.0)
        self._mutual = authorities is not None
        self._shown = self._files.current()

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for `add_secure_port` of a server of gRPC."""
        first = _configuration(self._shown)
        return grpc.dynamic_ssl_server_credentials(first, self._changed, require_client_authentication=self._mutual)

    @property
    def successful(self) -> bool:
        """Whether the files could be used when they last changed."""
        return self._files.successful

    @property
    def expires_seconds(self) -> float:
        """When the certificate in use expires, in seconds since 1970."""
        return self._files.current().expires_seconds

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC asks before a handshake; None: as before."""
        found = self._files.current()
        if found is self._shown:
            return None
        self._shown = found
        return _configuration(found)


def read_server_files(chain: bytes, key: bytes, authorities: bytes | None = None) -> ServerFiles:
    """Errors: BadRequest for what is no certificate or key, and for a key that belongs to another certificate."""
    own, *_ = _certificates(chain, "the certificate")
    if authorities is not None:
        _certificates(authorities, "the file of the clients' authorities")
    try:
        loaded = load_pem_private_key(key, password=None)
    except (ValueError, TypeError):
        raise _wrong("the key of the certificate cannot be read", "an unencrypted key in PEM") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if loaded.public_key().public_bytes(*form) != own.public_key().public_bytes(*form):
        raise _wrong("the key belongs to another certificate", "the key of this certificate")
    return ServerFiles(chain, key, authorities, own.not_valid_after_utc.timestamp())


def _certificates(content: bytes, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise _wrong(f"{what} cannot be read", "certificates in PEM") from None


def _configuration(files: ServerFiles) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(files.key, files.chain)], files.authorities)


def _wrong(message: str, allowed: str) -> BadRequest:
    return BadRequest(message, field=FIELD, allowed=allowed)
