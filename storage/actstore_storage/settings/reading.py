"""Reads settings: the environment over the file over the defaults, and each value with its source."""

import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

from actstore_storage.errors import ActstoreError, SettingsError
from actstore_storage.settings.described import Setting, fields_of, is_group, settings_of
from actstore_storage.settings.unknown import CONFIG, is_of_kubernetes, refuse_unknown, unknown_variables
from actstore_storage.settings.values import Unfit, from_file, from_text

T = TypeVar("T")
DEFAULT = "default"


@dataclass(frozen=True)
class Found:
    """A setting with its value, and where that is from: a variable, `key in FILE`, or the default."""

    setting: Setting
    value: Any = field(repr=False)
    source: str

    @property
    def missing(self) -> bool:
        return self.value is MISSING


@dataclass(frozen=True)
class FoundSettings:
    """All settings of one process, as they were found. `made` makes the frozen settings of them."""

    found: Mapping[tuple[str, ...], Found]

    def made(self, record: type[T]) -> T:
        """The frozen settings, checked. Errors: SettingsError that names the variable, or the key and the file."""
        try:
            return self._made(record, ())
        except ActstoreError as error:
            raise self._located(error) from None

    def _made(self, record: type[T], above: tuple[str, ...]) -> T:
        return record(**dict(self._values(record, above)))

    def _values(self, record: type, above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for one, kind in fields_of(record):
            path = (*above, one.name)
            if not is_group(kind):
                yield one.name, self._value(path)
            elif one.default is not None or self._asked_for(kind, path):
                yield one.name, self._group(kind, path)

    def _group(self, kind: type[T], path: tuple[str, ...]) -> T:
        try:
            return self._made(kind, path)
        except ActstoreError as error:
            raise self._located(error, path) from None

    def _value(self, path: tuple[str, ...]) -> Any:
        found = self.found[path]
        if found.missing:
            raise SettingsError(f"{found.setting.variable} is required", field=found.setting.variable)
        return found.value

    def _asked_for(self, group: type, path: tuple[str, ...]) -> bool:
        """Whether a group that may be absent is there: something that it requires was given."""
        own = [self.found[setting.path] for setting in settings_of(group, path)]
        return any(found.setting.default is MISSING and not found.missing for found in own)

    def _located(self, error: ActstoreError, above: tuple[str, ...] = ()) -> SettingsError:
        """The error, with the variable or the key whose value it refuses."""
        named = error.details.get("field", "")
        found = self.found.get((*above, named)) or self._of_variable(named)
        if found is None:
            return SettingsError(error.message, **error.details)
        where = found.setting.variable if found.source == DEFAULT else found.source
        message = error.message if where in error.message else f"{error.message} ({where})"
        return SettingsError(message, **{**error.details, "field": found.setting.variable})

    def _of_variable(self, name: str) -> Found | None:
        return next((found for found in self.found.values() if found.setting.variable == name), None)


@dataclass(frozen=True)
class Beside:
    """Settings of other processes, as `package.module:Class`. They are only imported if a name is in question."""

    settings: tuple[str, ...] = ()
    """Their variables may be set here too, and their keys may be in the file."""
    variables: tuple[str, ...] = ()
    """Their variables may be set here too, but the file has no such keys."""


def read_settings(
    records: Sequence[type], environment: Mapping[str, str], beside: Beside, file: str | None = None
) -> FoundSettings:
    """Reads the settings that the fields of some frozen dataclasses define.

    Args:
        records: The frozen dataclasses.
        environment: Variables; an empty one counts as unset.
        beside: Whose names are no errors.
        file: The TOML file. None: the one that ACTSTORE_CONFIG names, if it does.

    Raises:
        SettingsError: A value is not of its type, a name is unknown, or the file cannot be read.
    """
    named = file or environment.get(CONFIG)
    given = _read_file(named) if named else {}
    known = {setting.path: setting for record in records for setting in settings_of(record)}
    _refuse_unknown(given, environment, known.values(), beside, named)
    return FoundSettings({path: _find(setting, environment, given, named) for path, setting in known.items()})


def _refuse_unknown(
    given: Mapping[str, Any],
    environment: Mapping[str, str],
    own: Collection[Setting],
    beside: Beside,
    file: str | None,
) -> None:
    variables = unknown_variables(environment, (setting.variable for setting in own))
    keys = given.keys() - {setting.key for setting in own}
    if variables or keys:
        others = [*own, *_named(beside.settings)]
        _refuse(keys, others, "key", f"the file {file}")
        if variables - _names(others, "variable"):
            _refuse(variables, [*others, *_named(beside.variables)], "variable", "the environment")


def _refuse(given: set[str], known: Sequence[Setting | None], which: str, where: str) -> None:
    names = _names(known, which)
    refuse_unknown(given - names, names, where, all_known=None not in known)


def _names(known: Iterable[Setting | None], which: str) -> set[str]:
    return {getattr(setting, which) for setting in known if setting is not None}


def _named(records: Sequence[str]) -> list[Setting | None]:
    """The settings of classes. None stands for those of a package that this machine does not have."""
    found: list[Setting | None] = []
    for name in records:
        try:
            found += settings_of(resolve_name(name))
        except ImportError:
            found.append(None)
    return found


def _find(setting: Setting, environment: Mapping[str, str], given: Mapping[str, Any], file: str | None) -> Found:
    if text := environment.get(setting.variable):
        return Found(setting, _fit(setting, text, setting.variable, in_file=False), setting.variable)
    if setting.key in given:
        source = f"{setting.key} in {file}"
        return Found(setting, _fit(setting, given[setting.key], source, in_file=True), source)
    return Found(setting, setting.default, DEFAULT)


def _fit(setting: Setting, value: Any, source: str, *, in_file: bool) -> Any:
    try:
        return from_file(value, setting.kind) if in_file else from_text(value, setting.kind)
    except Unfit as error:
        shown = "***" if setting.secret else repr(value)
        why = ""
        if not in_file and is_of_kubernetes(setting.variable, value):
            why = "; Kubernetes sets it for a Service of that name: set enableServiceLinks: false in the pod"
        raise SettingsError(
            f"{source} is {shown}, which is not {error}{why}",
            field=setting.variable,
            value=None if setting.secret else value,
            allowed=str(error),
        ) from None


def _read_file(name: str) -> dict[str, Any]:
    """The values of a TOML file by their keys, those of tables as `table.key`."""
    try:
        found = tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{CONFIG} is {name}, which cannot be read: {error.strerror}"
    except ValueError as error:  # of TOML, and of UTF-8
        message = f"{CONFIG} is {name}, which is not TOML: {error}"
    else:
        return dict(_flat(found))
    raise SettingsError(message, field=CONFIG, value=name, allowed="a TOML file")


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value
