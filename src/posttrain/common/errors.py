"""Errors a user can act on. The CLI prints them without a traceback."""


class PosttrainError(Exception):
    """Something the user can mend: the message says what happened, where, and what to do."""


class ConfigError(PosttrainError):
    """A recipe, option or config that does not hold."""


class DataError(PosttrainError):
    """A file, or too many of its rows, cannot be used."""


class TrainingError(PosttrainError):
    """A run that must not go on: NaN, divergence, a template that would train the wrong tokens."""


class StoreError(PosttrainError):
    """The store or an artifact in it is missing, damaged, or cannot be written."""
