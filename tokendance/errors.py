"""The errors tokendance raises: one family, each also the builtin that people would catch."""

__all__ = [
    "FormatVersionError",
    "IdentityMismatchError",
    "NoMasterError",
    "ReadOnlyError",
    "ShapeMismatchError",
    "StoreCorruptError",
    "StoreLockedError",
    "TokenDanceError",
    "UnknownAgentError",
    "UnknownGenerationError",
]


class TokenDanceError(Exception):
    """Base of every error that tokendance raises on purpose."""


class NoMasterError(TokenDanceError, RuntimeError):
    """There is no master yet, and the call needs one."""


class _PlainKeyError(TokenDanceError, KeyError):
    def __str__(self) -> str:
        """Return the message itself; KeyError alone would print it in quotes."""
        return str(self.args[0]) if self.args else ""


class UnknownAgentError(_PlainKeyError):
    """No agent has this id."""


class UnknownGenerationError(_PlainKeyError):
    """A store has no generation of this number, or no tag of this name."""


class ShapeMismatchError(TokenDanceError, ValueError):
    """An array's shape or dtype does not fit the agents that are there."""


class StoreCorruptError(TokenDanceError, ValueError):
    """A store holds something that cannot be right."""


class StoreLockedError(TokenDanceError, OSError):
    """Another process is writing to this store."""


class FormatVersionError(TokenDanceError, ValueError):
    """The store was written in a format that this version cannot read."""


class IdentityMismatchError(TokenDanceError, ValueError):
    """The store belongs to another model or configuration."""


class ReadOnlyError(TokenDanceError, PermissionError):
    """The store was opened for reading, and the call would change it."""
