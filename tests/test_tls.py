"""Mutual TLS pinned to identity keys, tried on real gRPC servers and channels over loopback.

One test for each line of docs/adr/0002-tls-pinned-to-identity-keys.md: what is refused, by which layer, and
what the TLS layer alone would let through.
"""

import base64
import ipaddress
from collections.abc import Iterable
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from certificates import below_an_intermediate, common_name, forge, leaf_only
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from daemons import in_an_event_loop
from grpc.experimental.session_cache import ssl_session_cache_lru
from hypothesis import given
from hypothesis import strategies as st

from crypto import tls
from crypto.errors import BadSignature, CryptoError, Malformed
from crypto.keys import Identity, PublicKey
from crypto.tls import LeafCredentials, anchor_pem, make_leaf, peer_identity, server_name

A, B, C = (Identity.from_seed(letter * 32) for letter in (b"a", b"b", b"c"))
NAME_OF_B = x509.DNSName(server_name(B.public_key))
NAME_OF_C = x509.DNSName(server_name(C.public_key))
CALL_TIMEOUT_S = 10.0
#: The TLS layer hung up: the service never saw the call.
HUNG_UP = grpc.StatusCode.UNAVAILABLE
#: TLS let the peer in, and the service refused the stream.
REFUSED = grpc.StatusCode.PERMISSION_DENIED


# A node in small: the service answers with the name of whoever calls it


class Server:
    """Answers with the caller's key. TLS trusts the keys in `trusted` at the start, streams those in it now."""

    def __init__(self, trusted: Iterable[Identity]) -> None:
        self.trusted = {member.public_key for member in trusted}
        self.port = 0

    async def who_am_i(self, _request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        properties = context.auth_context()
        try:
            caller = peer_identity(properties["x509_pem_cert"][0])
        except CryptoError as error:
            await context.abort(REFUSED, str(error))
        resumed = properties["ssl_session_reused"][0] == b"true"
        return f"{caller} {'resumed' if resumed else 'new'}".encode()

    async def who_am_i_among_peers(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        answer = await self.who_am_i(request, context)
        if PublicKey.parse(answer.decode().split()[0]) not in self.trusted:
            await context.abort(REFUSED, "no longer a peer")
        return answer


@asynccontextmanager
async def running(identity: Identity, trusted: Iterable[Identity], *, anchors=anchor_pem, leaf=None):
    server = Server(trusted)
    handlers = {
        "WhoAmI": grpc.unary_unary_rpc_method_handler(server.who_am_i),
        "WhoAmIAmongPeers": grpc.unary_unary_rpc_method_handler(server.who_am_i_among_peers),
    }
    shell = grpc.aio.server()
    shell.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    leaf = leaf or make_leaf(identity)
    # Its own anchor too: gRPC fails on an empty list.
    roots = b"".join(anchors(key) for key in sorted({*server.trusted, identity.public_key}))
    credentials = grpc.ssl_server_credentials(
        [(leaf.private_key_pem, leaf.certificate_pem)], roots, require_client_auth=True
    )
    server.port = shell.add_secure_port("127.0.0.1:0", credentials)
    await shell.start()
    try:
        yield server
    finally:
        await shell.stop(None)


def dial(server: Server, leaf: LeafCredentials, *, expecting: Identity = A, options=()) -> grpc.aio.Channel:
    """A channel that trusts `expecting` and nobody else. The local pool keeps channels apart."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=anchor_pem(expecting.public_key),
        private_key=leaf.private_key_pem,
        certificate_chain=leaf.certificate_pem,
    )
    settings = [
        ("grpc.ssl_target_name_override", server_name(expecting.public_key)),
        ("grpc.use_local_subchannel_pool", 1),
        *options,
    ]
    return grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials, options=settings)


async def answer_on(channel: grpc.aio.Channel, method: str = "WhoAmI") -> str | grpc.StatusCode:
    """The answer ("<key> new" or "<key> resumed"), or the status of a refusal."""
    try:
        return (await channel.unary_unary(f"/test/{method}")(b"", timeout=CALL_TIMEOUT_S)).decode()
    except grpc.aio.AioRpcError as error:
        return error.code()


async def answer_to(server: Server, leaf: LeafCredentials, method: str = "WhoAmI", **dialing) -> str | grpc.StatusCode:
    """The answer on a new connection."""
    async with dial(server, leaf, **dialing) as channel:
        return await answer_on(channel, method)


def welcome(identity: Identity, how: str = "new") -> str:
    return f"{identity.public_key} {how}"


# Certificates that a node of ours never makes


def unconstrained_anchor(public_key: PublicKey) -> bytes:
    """The trust anchor as it would be without its name constraint."""
    name = common_name(public_key.raw.hex())
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(Ed25519PublicKey.from_public_bytes(public_key.raw))
        .serial_number(1)
        .not_valid_before(tls._NOT_BEFORE)
        .not_valid_after(tls._NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    return builder.sign(tls._ANCHOR_SIGNER, None).public_bytes(serialization.Encoding.PEM)


HEX_OF_C = C.public_key.raw.hex()
AN_ADDRESS = x509.IPAddress(ipaddress.ip_address("192.0.2.1"))

FORGERIES = {
    "C signs a leaf that names B": (lambda: forge(C, [NAME_OF_B]), BadSignature),
    "C signs in the issuer name of B": (
        lambda: forge(C, [NAME_OF_B], issuer=B.public_key.raw.hex()),
        BadSignature,
    ),
    "two keys are named": (lambda: forge(C, [NAME_OF_C, NAME_OF_B]), Malformed),
    "two keys are named, the other first": (lambda: forge(C, [NAME_OF_B, NAME_OF_C]), Malformed),
    "one key is named twice": (lambda: forge(C, [NAME_OF_C, NAME_OF_C]), Malformed),
    "an IP address beside the name": (lambda: forge(C, [NAME_OF_C, AN_ADDRESS]), Malformed),
    "a URI beside the name": (
        lambda: forge(C, [NAME_OF_C, x509.UniformResourceIdentifier("tidings://b")]),
        Malformed,
    ),
    "a mailbox beside the name": (lambda: forge(C, [NAME_OF_C, x509.RFC822Name("b@example.org")]), Malformed),
    "a directory name beside the name": (
        lambda: forge(C, [NAME_OF_C, x509.DirectoryName(common_name("b"))]),
        Malformed,
    ),
    "an IP address alone": (lambda: forge(C, [AN_ADDRESS]), Malformed),
    "no name": (lambda: forge(C, []), Malformed),
    "a name below the right one": (lambda: forge(C, [x509.DNSName(f"x.{NAME_OF_C.value}")]), Malformed),
    "a wildcard": (lambda: forge(C, [x509.DNSName(f"*.{HEX_OF_C[32:]}")]), Malformed),
    "a trailing dot": (lambda: forge(C, [x509.DNSName(f"{NAME_OF_C.value}.")]), Malformed),
    "upper case": (lambda: forge(C, [x509.DNSName(NAME_OF_C.value.upper())]), Malformed),
    "labels cut elsewhere": (lambda: forge(C, [x509.DNSName(f"{HEX_OF_C[:30]}.{HEX_OF_C[30:]}")]), Malformed),
    "a point of small order": (lambda: forge(C, [x509.DNSName(f"{'0' * 32}.{'0' * 32}")]), Malformed),
    "a leaf of C below a CA of C": (lambda: below_an_intermediate(C, [NAME_OF_C]), BadSignature),
    "a leaf of B below a CA of C": (lambda: below_an_intermediate(C, [NAME_OF_B]), BadSignature),
}


# Who gets in


@in_an_event_loop
async def test_peers_that_trust_each_other_talk_whichever_of_them_dials():
    async with running(A, [B]) as server_of_a, running(B, [A]) as server_of_b:
        assert await answer_to(server_of_a, make_leaf(B), expecting=A) == welcome(B)
        assert await answer_to(server_of_b, make_leaf(A), expecting=B) == welcome(A)


@in_an_event_loop
async def test_a_client_whose_key_was_not_added_is_hung_up_on():
    async with running(A, [B]) as server:
        assert await answer_to(server, make_leaf(C)) == HUNG_UP


@in_an_event_loop
async def test_a_client_without_a_certificate_is_hung_up_on():
    async with running(A, [B]) as server:
        options = [("grpc.ssl_target_name_override", server_name(A.public_key))]
        credentials = grpc.ssl_channel_credentials(anchor_pem(A.public_key))
        target = f"127.0.0.1:{server.port}"
        async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
            assert await answer_on(channel) == HUNG_UP


@in_an_event_loop
async def test_a_server_that_trusts_nobody_lets_nobody_in():
    async with running(A, []) as server:
        assert await answer_to(server, make_leaf(B)) == HUNG_UP
        assert await answer_to(server, make_leaf(A), method="WhoAmIAmongPeers") == REFUSED


@in_an_event_loop
async def test_a_client_that_finds_another_key_than_it_dialed_hangs_up():
    async with running(A, [B]) as server:
        assert await answer_to(server, make_leaf(B), expecting=C) == HUNG_UP
        assert await answer_to(server, make_leaf(B), expecting=A) == welcome(B)


@in_an_event_loop
async def test_a_server_that_claims_another_name_is_hung_up_on():
    claim = forge(C, [x509.DNSName(server_name(A.public_key))], issuer=A.public_key.raw.hex())
    async with running(C, [B], leaf=claim) as server:
        assert await answer_to(server, make_leaf(B), expecting=A) == HUNG_UP


@in_an_event_loop
async def test_the_two_sides_of_a_refusal_read_differently_to_the_client():
    """`status` puts both into words, and knows them by these."""
    async with running(A, [B]) as server:
        for leaf, expecting, words in (
            (make_leaf(C), A, "Socket closed"),
            (make_leaf(B), C, "CERTIFICATE_VERIFY_FAILED"),
        ):
            async with dial(server, leaf, expecting=expecting) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/test/WhoAmI")(b"", timeout=CALL_TIMEOUT_S)
                assert words in caught.value.details()


# C, whom we trust, shows a certificate that it should not have


@pytest.mark.parametrize("forgery", FORGERIES)
def test_peer_identity_refuses_every_forged_leaf(forgery):
    make, expected_error = FORGERIES[forgery]
    with pytest.raises(expected_error):
        peer_identity(leaf_only(make().certificate_pem))


@in_an_event_loop
async def test_no_forged_leaf_gets_past_tls_and_peer_identity_together():
    async with running(A, [B, C]) as server:
        for forgery, (make, _) in FORGERIES.items():
            assert await answer_to(server, make()) in (HUNG_UP, REFUSED), forgery
        assert await answer_to(server, make_leaf(C)) == welcome(C)


@in_an_event_loop
async def test_without_the_name_constraint_tls_alone_would_take_c_for_b():
    """With several anchors, any of them may vouch for any name: `peer_identity` stands alone here."""
    async with running(A, [B, C], anchors=unconstrained_anchor) as server:
        assert await answer_to(server, forge(C, [NAME_OF_B])) == REFUSED


@in_an_event_loop
async def test_tls_alone_does_not_hold_an_anchor_to_its_pathlen_nor_to_names_other_than_dns():
    async with running(A, [C]) as server:
        assert await answer_to(server, below_an_intermediate(C, [NAME_OF_C])) == REFUSED
        assert await answer_to(server, forge(C, [NAME_OF_C, AN_ADDRESS])) == REFUSED


@in_an_event_loop
async def test_further_certificates_in_a_chain_do_not_change_who_the_peer_is():
    async with running(A, [B, C]) as server:
        leaf = make_leaf(C)
        for extra in (make_leaf(B).certificate_pem, anchor_pem(B.public_key), anchor_pem(C.public_key)):
            longer = LeafCredentials(leaf.private_key_pem, leaf.certificate_pem + extra)
            assert await answer_to(server, longer) == welcome(C)


# A peer is removed while the server runs: see tests/test_server.py for the rest


@in_an_event_loop
async def test_a_live_connection_outlives_the_removal_of_its_peer_so_every_stream_is_checked():
    async with running(A, [B]) as server, dial(server, make_leaf(B)) as channel:
        assert await answer_on(channel, "WhoAmIAmongPeers") == welcome(B)
        server.trusted.remove(B.public_key)
        assert await answer_on(channel) == welcome(B)  # TLS does not look back
        assert await answer_on(channel, "WhoAmIAmongPeers") == REFUSED


@in_an_event_loop
async def test_a_resumed_session_still_tells_who_the_peer_is_so_every_stream_is_checked():
    async with running(A, [B]) as server:
        leaf = make_leaf(B)
        options = [("grpc.ssl_session_cache", ssl_session_cache_lru(8))]
        answers = [await answer_to(server, leaf, options=options) for _ in range(4)]
        assert answers[0] == welcome(B)
        assert answers[-1] == welcome(B, "resumed")
        server.trusted.remove(B.public_key)
        assert await answer_to(server, leaf, method="WhoAmIAmongPeers", options=options) == REFUSED


# The certificates themselves


@given(st.binary(min_size=32, max_size=32))
def test_the_leaf_of_an_identity_names_that_identity(seed):
    identity = Identity.from_seed(seed)
    assert peer_identity(make_leaf(identity).certificate_pem) == identity.public_key


def test_an_anchor_is_the_same_bytes_wherever_it_is_built():
    once = anchor_pem(B.public_key)
    anchor_pem.cache_clear()
    assert anchor_pem(PublicKey(B.public_key.raw)) == once
    assert anchor_pem(B.public_key) != anchor_pem(C.public_key)


def test_an_anchor_may_sign_leaves_for_its_one_name_and_nothing_else():
    extensions = x509.load_pem_x509_certificate(anchor_pem(B.public_key)).extensions
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    names = extensions.get_extension_for_class(x509.NameConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert (names.critical, names.value.permitted_subtrees) == (True, [NAME_OF_B])


def test_certificates_hold_at_any_clock_a_node_may_have():
    for pem in (make_leaf(B).certificate_pem, anchor_pem(B.public_key)):
        certificate = x509.load_pem_x509_certificate(pem)
        assert certificate.not_valid_before_utc.year == 1970
        assert certificate.not_valid_after_utc.year == 9999


def test_every_start_makes_a_new_leaf_key_and_shows_it_to_nobody():
    first, second = make_leaf(B), make_leaf(B)
    assert first.private_key_pem != second.private_key_pem
    assert "PRIVATE" not in repr(first)


def test_an_anchor_is_no_leaf():
    with pytest.raises(Malformed):
        peer_identity(anchor_pem(B.public_key))


def test_several_certificates_in_place_of_one_are_refused():
    with pytest.raises(Malformed, match="several certificates"):
        peer_identity(make_leaf(B).certificate_pem + make_leaf(C).certificate_pem)


def test_an_oversized_certificate_is_not_parsed():
    with pytest.raises(Malformed, match="too large"):
        peer_identity(make_leaf(B).certificate_pem + b" " * tls.MAX_CERTIFICATE_BYTES)


LEAF_DER = x509.load_pem_x509_certificate(make_leaf(B).certificate_pem).public_bytes(serialization.Encoding.DER)


def pem_of(der: bytes) -> bytes:
    encoded = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + encoded + b"-----END CERTIFICATE-----\n"


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_no_changed_byte_makes_a_leaf_say_anything_else():
    assert peer_identity(pem_of(LEAF_DER)) == B.public_key
    signed_der = x509.load_der_x509_certificate(LEAF_DER).tbs_certificate_bytes
    for position in range(len(LEAF_DER)):
        for mask in (0x01, 0x80, 0xFF):
            changed = bytearray(LEAF_DER)
            changed[position] ^= mask
            try:
                assert peer_identity(pem_of(bytes(changed))) == B.public_key
            except (Malformed, BadSignature):
                continue
            # What is left is the wrapper of the signature, which no signature covers and nothing reads.
            assert x509.load_der_x509_certificate(bytes(changed)).tbs_certificate_bytes == signed_der


def test_a_directory_name_of_an_odd_type_is_malformed_and_nothing_worse():
    """Found by fuzzing: the certificate library raises a TypeError for it."""
    pem = forge(C, [x509.DirectoryName(common_name("b"))]).certificate_pem
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    utf8_b, empty_bit_string = b"\x0c\x01b", b"\x03\x01\x00"
    assert der.count(utf8_b) == 1
    with pytest.raises(Malformed):
        peer_identity(pem_of(der.replace(utf8_b, empty_bit_string)))


@given(st.binary(max_size=300))
def test_any_other_bytes_are_refused_and_nothing_worse(data):
    for pem in (data, pem_of(data), pem_of(LEAF_DER[: len(data)] + data)):
        with pytest.raises((Malformed, BadSignature)):
            peer_identity(pem)
