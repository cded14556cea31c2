"""The checksum of a manifest."""

try:
    # What hashlib falls back on without OpenSSL, whose library takes 4 of the 110 ms in which a new process opens a
    # store and maps an agent. Other versions of Python may name it otherwise.
    from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    from hashlib import sha256

__all__ = ["sealed"]


def sealed(line: bytes) -> str:
    """Return the SHA-256 of a line, in hexadecimal.

    Examples
    --------
    >>> sealed(b"")[:16]
    'e3b0c44298fc1c14'
    """
    return str(sha256(line).hexdigest())
