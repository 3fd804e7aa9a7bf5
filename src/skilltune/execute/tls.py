"""The certificate with which the gateway proves itself to agents on other machines, and the key that stays here."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from skilltune.errors import UsageError

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
TRUST = ("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "CODEX_CA_CERTIFICATE")
"""Variables that name a file of certificates to trust, as Node and Bun, OpenSSL and Rust, Python, curl, and codex read
them."""


@dataclass(frozen=True)
class Tls:
    """`cert` is a PEM file: the certificate, and the others up to its root if it did not sign itself. `key` is the
    file of its private key."""

    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """The server's side. Raises `UsageError` if the files cannot be used."""
        for option, path in (("tls_cert", self.cert), ("tls_key", self.key)):
            try:
                path.read_bytes()
            except OSError as error:
                raise UsageError(f"workers.{option}: cannot read {path}: {error.strerror or error}") from error
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            made.load_cert_chain(self.cert, self.key, password=_no_password)
        except ssl.SSLError as error:
            why = {"KEY_VALUES_MISMATCH": "the key belongs to another certificate"}.get(error.reason or "", str(error))
            raise UsageError(
                f"workers.tls_cert={self.cert} and workers.tls_key={self.key} cannot be used together: {why}; both "
                "must be PEM files, without a password"
            ) from error
        if not self.public:
            raise UsageError(f"workers.tls_cert={self.cert} holds no block BEGIN CERTIFICATE: convert it with openssl")
        return made

    @cached_property
    def public(self) -> bytes:
        """The certificates alone, in PEM form: all that leaves this machine."""
        return b"".join(found + b"\n" for found in _CERTIFICATE.findall(self.cert.read_bytes()))


def _no_password() -> str:
    raise UsageError("workers.tls_key is protected by a password, which nobody could enter: remove it from the file")


def trusting(public: bytes) -> ssl.SSLContext:
    """A client's side that trusts these certificates and no others, as strictly as agents do: Python 3.13 would take a
    certificate without its root. Raises `ssl.SSLError`."""
    made = ssl.create_default_context(cadata=public.decode("ascii", "replace"))
    made.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
    return made
