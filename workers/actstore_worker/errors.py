"""Errors that prevent the workers from starting, and what callers learn of their faults."""

from actstore_storage.errors import SettingsError as SettingsError

# All that a caller learns of an error that is not actstore's own.
LOG_HAS_DETAILS = "the workers failed; their log has the details"
