"""Certificates that no honest node makes, for the tests that show that they are refused."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from crypto import tls
from crypto.keys import Identity
from crypto.tls import LeafCredentials


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def forge(
    signer: Identity | ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName],
    *,
    issuer: str | None = None,
    subject: str = "tidings",
    ca: bool = False,
    key: ec.EllipticCurvePrivateKey | None = None,
    below: bytes = b"",
) -> LeafCredentials:
    """A certificate with these names, signed by this key, perhaps with others `below` it in its chain."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    if isinstance(signer, Identity):
        issuer = issuer or signer.public_key.raw.hex()
        signing_key, algorithm = Ed25519PrivateKey.from_private_bytes(signer.seed), None
    else:
        signing_key, algorithm = signer, hashes.SHA256()
    builder = (
        x509.CertificateBuilder()
        .subject_name(common_name(subject))
        .issuer_name(common_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(tls._NOT_BEFORE)
        .not_valid_after(tls._NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(signing_key, algorithm)
    return LeafCredentials(
        private_key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM) + below,
    )


def below_an_intermediate(signer: Identity, names: list[x509.GeneralName]) -> LeafCredentials:
    """A leaf signed by a CA in between, which this identity signed: pathlen:0 in its anchor forbids it."""
    key = ec.generate_private_key(ec.SECP256R1())
    intermediate = forge(signer, [], subject="in between", ca=True, key=key)
    return forge(key, names, issuer="in between", below=intermediate.certificate_pem)


def leaf_only(certificate_pem: bytes) -> bytes:
    """The first certificate of a chain: what gRPC hands over as `x509_pem_cert`."""
    return certificate_pem[: certificate_pem.index(b"-----END CERTIFICATE-----") + 26]
