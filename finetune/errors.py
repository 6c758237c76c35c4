"""Errors a user can mend. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

from data_prep.errors import DataError, UserError, did_you_mean

__all__ = [
    "ArtifactError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "UserError",
    "did_you_mean",
]


class ConfigError(UserError):
    """A configuration has a wrong key or value."""


class CheckpointError(UserError):
    """A run folder cannot be resumed, or a checkpoint cannot be written."""


class ArtifactError(UserError):
    """A base or an artifact is missing, damaged or does not fit."""
