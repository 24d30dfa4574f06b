"""Settings from the environment, a TOML file and the defaults: which one counts, and what is refused."""

import tomllib
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest

from actstore_storage.bucket.access import S3Access
from actstore_storage.errors import SettingsError
from actstore_storage.settings.checks import check_least, check_positive
from actstore_storage.settings.described import settings_of
from actstore_storage.settings.printing import printed
from actstore_storage.settings.reading import Beside, read_settings


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    calls: int = 2
    pause_seconds: float = 1.5

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True)
class Outer:
    name: str
    secret: str | None = field(default=None, repr=False)
    port: int = 0
    share: float = 0.5
    quiet: bool = False
    colour: Colour = Colour.RED
    folders: tuple[Path, ...] = ()
    places: tuple[str, ...] = ()
    most: int | None = None
    s3: S3Access | None = None
    limits: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check_least(self, 0, "port")


@dataclass(frozen=True)
class Other:
    dataset: str = ""
    limits: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Caller:
    address: str = ""


NAMED = {"ACTSTORE_NAME": "lab"}
BESIDE = Beside((f"{__name__}:Other",), (f"{__name__}:Caller",))


def read(environment: dict[str, str], toml: str | None = None, folder: Path | None = None) -> Outer:
    file = None
    if toml is not None and folder is not None:
        file = folder / "actstore.toml"
        file.write_text(toml)
    return read_settings((Outer,), environment, BESIDE, str(file) if file else None).made(Outer)


def test_defaults() -> None:
    assert read(NAMED) == Outer("lab")


def test_each_type_of_a_variable(tmp_path: Path) -> None:
    found = read(
        NAMED
        | {
            "ACTSTORE_SECRET": "hidden",
            "ACTSTORE_PORT": "7",
            "ACTSTORE_SHARE": "0.25",
            "ACTSTORE_QUIET": "1",
            "ACTSTORE_COLOUR": "blue",
            "ACTSTORE_FOLDERS": f"{tmp_path}/a:{tmp_path}/b",
            "ACTSTORE_PLACES": "s3://a  s3://b",
            "ACTSTORE_MOST": "3",
            "ACTSTORE_S3_ENDPOINT": "host:9",
            "ACTSTORE_S3_SECURE": "0",
            "ACTSTORE_LIMITS_CALLS": "5",
            "ACTSTORE_LIMITS_PAUSE_SECONDS": "2",
        }
    )
    assert found == Outer(
        "lab",
        "hidden",
        7,
        0.25,
        True,
        Colour.BLUE,
        (tmp_path / "a", tmp_path / "b"),
        ("s3://a", "s3://b"),
        3,
        S3Access("host:9", secure=False),
        Inner(5, 2.0),
    )


def test_the_environment_counts_before_the_file(tmp_path: Path) -> None:
    toml = 'name = "of the file"\nplaces = ["x"]\n[limits]\ncalls = 7\npause_seconds = 3\n[s3]\nendpoint = "host"'
    found = read(NAMED | {"ACTSTORE_LIMITS_CALLS": "5", "ACTSTORE_PLACES": ""}, toml, tmp_path)
    assert found == Outer("lab", places=("x",), s3=S3Access("host"), limits=Inner(5, 3.0))


def test_the_file_that_a_variable_names(tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text('name = "lab"')
    assert read({"ACTSTORE_CONFIG": f"{tmp_path}/lab.toml"}) == Outer("lab")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "ACTSTORE_NAME is required"),
        ({"ACTSTORE_PORT": "few"}, "ACTSTORE_PORT is 'few', which is not a whole number"),
        ({"ACTSTORE_PORT": "-1"}, r"port is -1, and must be at least 0 \(ACTSTORE_PORT\)"),
        ({"ACTSTORE_SHARE": "much"}, "ACTSTORE_SHARE is 'much', which is not a number"),
        ({"ACTSTORE_QUIET": "yes"}, "ACTSTORE_QUIET is 'yes', which is not 0 or 1"),
        ({"ACTSTORE_COLOUR": "green"}, "ACTSTORE_COLOUR is 'green', which is not 'red' or 'blue'"),
        ({"ACTSTORE_LIMITS_CALLS": "0"}, r"calls is 0, and must be positive \(ACTSTORE_LIMITS_CALLS\)"),
        ({"ACTSTORE_LIMITS_PAUSE_SECONDS": "nan"}, r"ACTSTORE_LIMITS_PAUSE_SECONDS"),
        ({"ACTSTORE_LIMIT_CALLS": "1"}, "ACTSTORE_LIMIT_CALLS in the environment is no .*ACTSTORE_LIMITS_CALLS"),
        ({"ACTSTORE_DATASETS": "x"}, "the closest is ACTSTORE_DATASET"),
        ({"ACTSTORE_PORT": "tcp://10.0.0.1:80"}, "Kubernetes sets it .* enableServiceLinks: false"),
        ({"ACTSTORE_CONFIG": "/nowhere.toml"}, "ACTSTORE_CONFIG is /nowhere.toml, which cannot be read"),
    ],
)
def test_variables_that_are_refused(environment: dict[str, str], said: str) -> None:
    named = NAMED if environment else {}
    with pytest.raises(SettingsError, match=said) as refusal:
        read(named | environment)
    assert refusal.value.details["field"].startswith("ACTSTORE_")


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('port = "7"', "port in .*/actstore.toml is '7', which is not a whole number"),
        ("port = -1", r"port is -1, and must be at least 0 \(port in .*/actstore.toml\)"),
        ("[limits]\ncalls = true", "limits.calls in .*/actstore.toml is True"),
        ("[limits]\ncalls = 0", r"calls is 0, and must be positive \(limits.calls in .*/actstore.toml\)"),
        ("limits = 3", "limits in the file .*/actstore.toml is no setting .*; the closest is limits.calls"),
        ("[limit]\ncalls = 3", "limit.calls in the file .*; the closest is limits.calls"),
        ("name = x", "which is not TOML: .*line 1"),
        ("[port]\nfew = 1", "port.few"),
        ('address = "lab:1"', "address in the file"),
        ("secret = 34567", r"secret in .* is \*\*\*, which is not text in quotes"),
    ],
)
def test_keys_that_are_refused(tmp_path: Path, toml: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refusal:
        read(NAMED, toml, tmp_path)
    assert "34567" not in f"{refusal.value} {refusal.value.details}"


def test_names_of_other_processes_and_of_kubernetes_are_no_errors(tmp_path: Path) -> None:
    links = {
        "ACTSTORE_SERVICE_HOST": "10.0.0.1",
        "ACTSTORE_SERVICE_PORT_GRPC": "7433",
        "ACTSTORE_PORT_7433_TCP_ADDR": "10.0.0.1",
        "ACTSTORE_METRICS_PORT": "tcp://10.0.0.1:9433",
    }
    others = {"ACTSTORE_DATASET": "x", "ACTSTORE_ADDRESS": "lab:1", "ACTSTORE_FAULT_SEED": "1"}
    assert read(NAMED | links | others, 'dataset = "y"', tmp_path) == Outer("lab")


def test_typing_errors_are_found_where_other_processes_are_not_installed() -> None:
    alone = Beside(("absent_package.settings:Settings",))
    assert read_settings((Outer,), NAMED | {"ACTSTORE_DATASET": "x"}, alone).made(Outer) == Outer("lab")
    with pytest.raises(SettingsError, match="the closest is ACTSTORE_LIMITS_CALLS"):
        read_settings((Outer,), NAMED | {"ACTSTORE_LIMIT_CALLS": "1"}, alone)


def test_what_is_printed_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "given.toml").write_text('name = "a \\"lab\\""\nplaces = ["x", "y"]\ncolour = "blue"')
    environment = {"ACTSTORE_LIMITS_CALLS": "5", "ACTSTORE_SECRET": "hidden", "ACTSTORE_FOLDERS": str(tmp_path)}
    found = read_settings((Outer,), environment, BESIDE, f"{tmp_path}/given.toml")
    shown = printed(found)
    assert "calls = 5  # ACTSTORE_LIMITS_CALLS" in shown
    assert f"# name in {tmp_path}/given.toml" in shown
    assert "pause_seconds = 1.5  # default" in shown
    assert '# secret = "***"  # ACTSTORE_SECRET' in shown
    assert "hidden" not in shown
    (tmp_path / "printed.toml").write_text(shown)
    again = read_settings((Outer,), {"ACTSTORE_SECRET": "hidden"}, BESIDE, f"{tmp_path}/printed.toml")
    assert again.made(Outer) == found.made(Outer)
    assert tomllib.loads(shown)["limits"] == {"calls": 5, "pause_seconds": 1.5}


def test_no_two_settings_share_a_variable() -> None:
    from actstore_service.settings import Settings
    from actstore_storage.settings.store import StoreSettings
    from actstore_worker.settings import WorkerSettings

    kinds: dict[str, tuple[str, object]] = {}
    for record in (StoreSettings, Settings, WorkerSettings):
        own = list(settings_of(record))
        assert len({setting.variable for setting in own}) == len(own)
        for setting in own:
            meant = (setting.key, setting.kind)
            assert kinds.setdefault(setting.variable, meant) == meant
