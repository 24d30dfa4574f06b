"""The options of a process's command line that concern its settings."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actstore_storage.settings.printing import printed
from actstore_storage.settings.reading import Beside, FoundSettings, read_settings
from actstore_storage.settings.unknown import CONFIG


@dataclass(frozen=True)
class Options:
    config: str | None
    """The TOML file with settings."""
    print_config: bool
    check_store: bool
    """Whether to test the store as the workers do at their start, and end."""

    @classmethod
    def of(cls, program: str, arguments: Sequence[str] | None = None) -> "Options":
        parser = argparse.ArgumentParser(prog=f"python -m {program}")
        parser.add_argument("--config", metavar="FILE", help=f"TOML file with settings (default: {CONFIG})")
        parser.add_argument(
            "--print-config", action="store_true", help="print each setting with its value and source, and end"
        )
        parser.add_argument(
            "--check-store", action="store_true", help="test whether the store keeps commits apart, and end"
        )
        return cls(**vars(parser.parse_args(arguments)))

    def read(self, records: Sequence[type], environment: Mapping[str, str], beside: Beside) -> FoundSettings | None:
        """The settings, as `read_settings`; None if they were to be printed, and are sound."""
        found = read_settings(records, environment, beside, self.config)
        if not self.print_config:
            return found
        print(printed(found), end="", flush=True)
        for record in records:
            found.made(record)
        return None
