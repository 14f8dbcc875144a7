"""The text form of 32 bytes that people copy: a prefix, then base32 (RFC 4648, lower case, no padding) of the bytes and
a checksum of 4 bytes. A mistyped letter is refused; what was typed is never quoted, since it may be a secret.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

from crypto.errors import Malformed

RAW_BYTES: Final = 32
CHECKSUM_BYTES: Final = 4
# 36 bytes are 288 bits; 58 letters hold 290, of which the last two are always zero.
LETTERS: Final = 58


@dataclass(frozen=True)
class TextForm:
    """How one kind of key is written. `what` is its name in messages, `source` says what to copy."""

    prefix: str
    person: bytes
    what: str
    source: str

    @property
    def chars(self) -> int:
        """How long a key in this form is."""
        return len(self.prefix) + LETTERS

    def write(self, raw: bytes) -> str:
        """The text of these 32 bytes."""
        return self.prefix + base64.b32encode(raw + self._checksum(raw)).decode("ascii").rstrip("=").lower()

    def read(self, text: str) -> bytes:
        """The 32 bytes of a text, typed or pasted: letter case and white space do not matter. Malformed otherwise."""
        if not isinstance(text, str):  # a value of a file
            raise Malformed(f"A {self.what} is text: {self.source}.")
        compact = "".join(text.split()).lower()
        if not compact.startswith(self.prefix):
            raise Malformed(f"A {self.what} starts with '{self.prefix}': {self.source}.")
        if len(compact) != self.chars:
            raise Malformed(
                f"A {self.what} has {self.chars} characters and this one has {len(compact)}: "
                "it looks mistyped or cut off, copy it again."
            )
        try:
            data = base64.b32decode(compact[len(self.prefix) :].upper() + "======")
        except (binascii.Error, ValueError):
            raise Malformed(
                f"This {self.what} holds a character that no key has: it looks mistyped, copy it again."
            ) from None
        raw, checksum = data[:RAW_BYTES], data[RAW_BYTES:]
        # The second comparison refuses stray bits in the last letter, which base32 decoders ignore.
        if checksum != self._checksum(raw) or self.write(raw) != compact:
            raise Malformed(f"The checksum of this {self.what} is wrong: it looks mistyped, copy it again.")
        return raw

    def _checksum(self, raw: bytes) -> bytes:
        return hashlib.blake2b(raw, digest_size=CHECKSUM_BYTES, person=self.person).digest()
