"""Each alert fires with the series of its first case, and is silent with those of its second: promtool computes it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.monitoring.alerts import ALERTS, Alert, Series
from deploy.monitoring.files import ROOT, rules
from tests.monitoring.tools import tool
from tests.waiting import PATIENCE_SECONDS

RULES = ROOT / "deploy" / "monitoring" / "rules.yaml"


def _case(alert: Alert, series: Series, fires: bool) -> dict[str, Any]:
    """A case of promtool, which looks whether anything of the alert is there, whatever its labels are."""
    firing = f'count(ALERTS{{alertname="Actstore{alert.name}",alertstate="firing"}}) > bool 0'
    return {
        "name": f"{alert.name} {'fires' if fires else 'is silent'}",
        "interval": alert.every,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": firing,
                "eval_time": alert.after,
                "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
            }
        ],
    }


def _tested(tmp_path: Path, *cases: tuple[Alert, dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """One file for each alert, with its own rule only: each rule of a file is evaluated at every step of each case."""
    written = [
        _write(tmp_path, alert, [case for of, case in cases if of is alert])
        for alert in {of.name: of for of, _ in cases}.values()
    ]
    return subprocess.run(
        [tool("promtool"), "test", "rules", *written], capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )


def _write(tmp_path: Path, alert: Alert, cases: list[dict[str, Any]]) -> Path:
    own = [rule for rule in rules()["groups"][0]["rules"] if rule["alert"] == f"Actstore{alert.name}"]
    rule, file = tmp_path / f"{alert.name}-rule.yaml", tmp_path / f"{alert.name}.yaml"
    rule.write_text(yaml.safe_dump({"groups": [{"name": "actstore", "rules": own}]}))
    file.write_text(yaml.safe_dump({"rule_files": [str(rule)], "evaluation_interval": alert.every, "tests": cases}))
    return file


def test_the_rules_are_valid() -> None:
    done = subprocess.run(
        [tool("promtool"), "check", "rules", RULES], capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_each_alert_fires_and_is_silent(tmp_path: Path) -> None:
    assert all(alert.silent for alert in ALERTS)
    firing = [(alert, _case(alert, alert.fires, fires=True)) for alert in ALERTS]
    silent = [(alert, _case(alert, alert.silent, fires=False)) for alert in ALERTS]
    done = _tested(tmp_path, *firing, *silent)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("fires", [True, False])
def test_a_case_that_is_wrong_fails(tmp_path: Path, fires: bool) -> None:
    alert = next(alert for alert in ALERTS if alert.name == "WorkersDown")
    case = _case(alert, alert.silent if fires else alert.fires, fires)
    assert _tested(tmp_path, (alert, case)).returncode
