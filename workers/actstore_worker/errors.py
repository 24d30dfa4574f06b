"""Errors that prevent the workers from starting."""

from actstore_storage.errors import SettingsError as SettingsError
