"""The one error that a user is meant to read: what is wrong, where, and what to do about it."""


class InputError(ValueError):
    """Something given to us cannot be used. The message names the file, the key and the remedy."""
