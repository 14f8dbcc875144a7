"""Sealed streams: whole and in order, or noticed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.errors import BadSeal, NotForUs
from crypto.keys import EncryptionKey
from crypto.sealing import unwrap_epoch_key, unwrap_stream_key, wrap_epoch_key, wrap_stream_key
from crypto.streams import BLOCK_BYTES, SEALED_BLOCK_BYTES, StreamOpener, StreamSealer, new_stream_key

OURS = EncryptionKey.generate()


def sealed(blocks: list[bytes], key: bytes) -> tuple[bytes, list[bytes]]:
    sealer = StreamSealer(key)
    return sealer.header, [sealer.seal(one, is_last=one is blocks[-1]) for one in blocks]


def some_blocks(count: int) -> list[bytes]:
    return [bytes([number]) * BLOCK_BYTES for number in range(count - 1)] + [b"the end"]


def test_a_stream_opens_block_by_block_and_says_which_is_the_last() -> None:
    key = new_stream_key()
    header, parts = sealed(some_blocks(3), key)
    opener = StreamOpener(key, header)
    opened = [opener.open(part) for part in parts]
    assert [is_last for _, is_last in opened] == [False, False, True]
    assert opened[1][0] == b"\1" * BLOCK_BYTES
    assert opened[2][0] == b"the end".ljust(BLOCK_BYTES, b"\0")


@given(st.binary(max_size=200))
def test_every_block_has_the_same_size_whatever_is_in_it(end: bytes) -> None:
    _, (part,) = sealed([end], new_stream_key())
    assert len(part) == SEALED_BLOCK_BYTES


@settings(max_examples=30)
@given(st.integers(0, SEALED_BLOCK_BYTES * 8 - 1))
def test_one_flipped_bit_is_noticed(bit: int) -> None:
    key = new_stream_key()
    header, (part,) = sealed([b"x"], key)
    changed = bytearray(part)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadSeal):
        StreamOpener(key, header).open(bytes(changed))


@pytest.mark.parametrize("order", [[1], [0, 2], [0, 0], [0, 1, 1]])
def test_a_block_that_is_not_the_next_one_is_noticed(order: list[int]) -> None:
    key = new_stream_key()
    header, parts = sealed(some_blocks(3), key)
    opener = StreamOpener(key, header)
    for number in order[:-1]:
        opener.open(parts[number])
    with pytest.raises(BadSeal):
        opener.open(parts[order[-1]])


def test_a_block_that_was_cut_is_noticed() -> None:
    key = new_stream_key()
    header, (part,) = sealed([b"x"], key)
    with pytest.raises(BadSeal):
        StreamOpener(key, header).open(part[:-1])


def test_only_the_last_block_may_be_short() -> None:
    with pytest.raises(ValueError, match="block"):
        StreamSealer(new_stream_key()).seal(b"short", is_last=False)


def test_a_stream_key_opens_for_its_recipient_and_context_and_never_as_an_epoch_key() -> None:
    key = new_stream_key()
    wrapped = wrap_stream_key(key, OURS.public, context=b"us")
    assert unwrap_stream_key(wrapped, OURS, context=b"us") == key
    with pytest.raises(NotForUs):
        unwrap_stream_key(wrapped, OURS, context=b"them")
    with pytest.raises(NotForUs):
        unwrap_stream_key(wrapped, EncryptionKey.generate(), context=b"us")
    with pytest.raises(NotForUs):
        unwrap_epoch_key(wrapped, OURS, context=b"us")
    with pytest.raises(NotForUs):
        unwrap_stream_key(wrap_epoch_key(key, OURS.public, context=b"us"), OURS, context=b"us")
