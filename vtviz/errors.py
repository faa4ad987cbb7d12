"""Typed errors: one line each, naming the offending value and what to do about it.

The CLI and the page print ``str(error)`` and nothing else; everything that is not a :class:`VtvizError` is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_CHOICES = 16
"""Names that an error line lists before it says "and more"."""


class VtvizError(Exception):
    """Base of every error that a user's input can cause."""


class ImageError(VtvizError, ValueError):
    """An image that cannot be read, or will not be (too large, unknown format, wrong shape)."""


class CheckpointError(VtvizError, ValueError):
    """Weights or a model card that are missing, damaged, or do not fit the model."""


class ConfigError(VtvizError, ValueError):
    """A model, recipe or option value that cannot work."""


class DataError(VtvizError, ValueError):
    """A data set that is missing, empty, or does not match the model's classes."""


class TrainingError(VtvizError, RuntimeError):
    """A training run that cannot start or had to stop."""


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for a near miss, else the first choices, for the end of an error line."""
    options = sorted(choices)
    close = difflib.get_close_matches(value, options, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not options:
        return ""
    more = f" and {len(options) - MOST_CHOICES} more" if len(options) > MOST_CHOICES else ""
    return f"; choose from {', '.join(options[:MOST_CHOICES])}{more}"
