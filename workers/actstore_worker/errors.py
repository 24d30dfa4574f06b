"""Errors that prevent the workers from starting."""


class SettingsError(ValueError):
    """A setting that is missing or impossible; the text names the environment variable."""
