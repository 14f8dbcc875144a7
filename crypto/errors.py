"""What can go wrong with keys, signatures and seals: one small family, each message one sentence.

Nothing here ever carries a secret: messages name files, labels and public keys only.
"""


class CryptoError(Exception):
    """Something about keys, signatures, seals or certificates is not as it must be."""


class Malformed(CryptoError):
    """These bytes or this text are not of the form they claim: nothing was learned from them."""


class BadSignature(CryptoError):
    """The signature is not by this key over these bytes: treat the message as never received."""


class NotForUs(CryptoError):
    """This was wrapped for a key that we do not hold, or was changed on its way."""


class BadSeal(CryptoError):
    """The ciphertext does not open under its key, or the key is not the one its origin committed to."""


class KeystoreError(CryptoError):
    """The keystore file cannot be made or used as it is."""


class KeystoreLocked(KeystoreError):
    """The keystore needs a passphrase that nobody gave."""


class WrongPassphrase(KeystoreError):
    """The keystore does not open with this passphrase."""
