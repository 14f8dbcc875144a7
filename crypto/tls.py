"""Certificates for mutual TLS pinned to identity keys (docs/adr/0002-tls-pinned-to-identity-keys.md).

TLS libraries speak of certificate authorities; Tidings trusts keys. So each identity acts as a tiny CA: it
signs one P-256 leaf for its node, and whoever trusts the identity builds the CA's certificate, the trust
anchor, from the 32 bytes of its public key alone. The profile is that of RFC 5280.

    leaf    subject "tidings"; one DNS name derived from the identity key; signed by that key
    anchor  subject and issuer CN = hex of the identity key; CA, pathlen:0, permits that DNS name only

A client trusts one anchor, so a completed handshake proves whom it dialed. A server trusts many, and then
TLS proves only that some trusted key vouches for the leaf, perhaps through a certificate in between (the
TLS library of gRPC does not hold anchors to their pathlen): call `peer_identity` before believing a name.

Refuses to judge dates: who is trusted is the peer list's business, and clocks of nodes may be wrong by
years. Opens no socket: PEM in, PEM out.
"""

import re
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import nacl.exceptions
import nacl.signing
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from crypto.errors import BadSignature, Malformed
from crypto.keys import Identity, PublicKey

MAX_CERTIFICATE_BYTES: Final = 16_384

# RFC 5280, 4.1.2.5: the largest date stands for "no well-defined expiration".
_NOT_BEFORE: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_AFTER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)

# Nobody checks an anchor's own signature, so a key that everyone knows makes them all: one public key then
# has one anchor, byte for byte. Nothing anywhere trusts this key.
_ANCHOR_SIGNER: Final = Ed25519PrivateKey.from_private_bytes(bytes(32))

_SERVER_NAME: Final = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{32})")

# What reading the names of a hostile certificate was seen to raise (TypeError: a directory name that holds a
# BIT STRING).
_UNREADABLE_NAMES: Final = (
    ValueError,
    TypeError,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True)
class LeafCredentials:
    """What a node shows in a handshake: a fresh P-256 key (secret) and its certificate, both PEM."""

    private_key_pem: bytes = field(repr=False)
    certificate_pem: bytes


def server_name(public_key: PublicKey) -> str:
    """The one DNS name of this identity: the hex of its key, cut in two since a label holds 63 characters."""
    digits = public_key.raw.hex()
    return f"{digits[:32]}.{digits[32:]}"


def make_leaf(identity: Identity) -> LeafCredentials:
    """A leaf certificate for a new P-256 key, signed by the identity. Made at each start, never stored."""
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    issuer_key = Ed25519PrivateKey.from_private_bytes(identity.seed)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tidings")]))
        .issuer_name(_anchor_name(identity.public_key))
        .public_key(leaf_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(server_name(identity.public_key))]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, algorithm=None)
    )
    return LeafCredentials(
        private_key_pem=leaf_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
    )


@lru_cache(maxsize=1024)  # a server asks for all its anchors at every handshake, whoever knocks
def anchor_pem(public_key: PublicKey) -> bytes:
    """The trust anchor of an identity, from its public key alone: the same bytes wherever it is built."""
    authority_key = Ed25519PublicKey.from_public_bytes(public_key.raw)
    permitted = x509.NameConstraints([x509.DNSName(server_name(public_key))], excluded_subtrees=None)
    return (
        x509.CertificateBuilder()
        .subject_name(_anchor_name(public_key))
        .issuer_name(_anchor_name(public_key))
        .public_key(authority_key)
        .serial_number(1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(permitted, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key), critical=False)
        .sign(_ANCHOR_SIGNER, algorithm=None)
        .public_bytes(serialization.Encoding.PEM)
    )


def peer_identity(x509_pem: bytes) -> PublicKey:
    """The identity behind a leaf that a completed handshake showed.

    Proves that the key which the leaf names signed the leaf; that the peer holds the leaf's own key is what
    the handshake proved. Whether the identity is trusted is for the caller to look up, on every stream.

    Raises Malformed unless there is one certificate with exactly one DNS name, of our form, and no other
    name; BadSignature when another key signed it.
    """
    certificate = _one_certificate(x509_pem)
    claimed = _claimed_key(certificate)
    try:
        nacl.signing.VerifyKey(claimed.raw).verify(certificate.tbs_certificate_bytes, certificate.signature)
    except (nacl.exceptions.BadSignatureError, nacl.exceptions.ValueError):
        raise BadSignature(
            f"A peer showed a certificate that names {claimed.short} but another key signed it: refuse it."
        ) from None
    return claimed


def _one_certificate(x509_pem: bytes) -> x509.Certificate:
    if len(x509_pem) > MAX_CERTIFICATE_BYTES:
        raise Malformed("A peer's certificate is too large to be one of ours: refuse the connection.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of what later releases of the library refuse, and of nothing else
            certificates = x509.load_pem_x509_certificates(x509_pem)
    except (ValueError, x509.InvalidVersion, Warning):
        raise Malformed("A peer's certificate cannot be read: refuse the connection.") from None
    if len(certificates) != 1:
        raise Malformed("A peer showed several certificates in place of one: refuse the connection.")
    return certificates[0]


def _claimed_key(certificate: x509.Certificate) -> PublicKey:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = list(extension.value)
    except _UNREADABLE_NAMES:
        raise Malformed("A peer's certificate names nobody in a form we know: refuse the connection.") from None
    if len(names) != 1 or not isinstance(names[0], x509.DNSName):
        raise Malformed("A peer's certificate must hold one DNS name and no other: refuse the connection.")
    match = _SERVER_NAME.fullmatch(names[0].value)
    if match is None:
        raise Malformed("A peer's certificate does not name an identity key: refuse the connection.")
    return PublicKey(bytes.fromhex(match[1] + match[2]))


def _anchor_name(public_key: PublicKey) -> x509.Name:
    # 64 characters, the most a CN may have. A name per key lets a verifier find the one anchor of a leaf.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, public_key.raw.hex())])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
