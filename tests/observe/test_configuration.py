"""The settings of Prometheus, Grafana and Loki in deploy/: checked without running Grafana or Loki."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from deploy.dashboards import FOLDER as DASHBOARDS_FOLDER
from tests.support.compose import compose_command, copy_files
from tests.support.installation import ROOT
from tests.support.prometheus_tools import run_promtool

PROMETHEUS = ROOT / "deploy/prometheus"
GRAFANA = ROOT / "deploy/grafana"
OBSERVERS = {"prometheus", "grafana", "loki", "alloy"}
DASHBOARDS_IN_CONTAINER = "/etc/grafana/lamplighter"


def read_services(tmp_path: Path) -> dict[str, Any]:
    """Return the services of deploy/compose as compose reads them, in a copy beside prometheus and grafana."""
    for folder in (PROMETHEUS, GRAFANA):
        shutil.copytree(folder, tmp_path / folder.name)
    environ = {"LAMPLIGHTER_DOMAIN": "gpu.example.com", "LAMPLIGHTER_SITE": "gpu.example.com"}
    folder = copy_files(tmp_path / "compose", environ)
    (folder / "metrics.key").write_text("secret")
    argv = [*compose_command(), "--profile", "observe", "config"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return services


def mounted_files(service: dict[str, Any]) -> dict[str, str]:
    """Return what a service mounts from the machine, by its path in the container."""
    found = {}
    for mount in service.get("volumes", ()):
        source, target = mount.split(":")[:2] if isinstance(mount, str) else (mount.get("source", ""), mount["target"])
        if source.startswith("/"):
            found[target] = source
    return found


def test_the_profile_adds_what_it_says_and_its_files_exist(tmp_path: Path):
    services = read_services(tmp_path)
    assert {name for name, service in services.items() if service.get("profiles") == ["observe"]} == OBSERVERS
    assert services.keys() - OBSERVERS == {"edge", "caddy"}
    for name in OBSERVERS:
        for target, source in mounted_files(services[name]).items():
            assert Path(source).exists(), (name, target)
    assert DASHBOARDS_IN_CONTAINER in mounted_files(services["grafana"])
    mounted = {Path(target).name for target in mounted_files(services["prometheus"])}
    assert mounted == {"prometheus.yml", "rules.yaml", "metrics.key"}
    published = {name for name in OBSERVERS if services[name].get("ports")}
    assert published == {"grafana"}


def test_prometheus_accepts_its_settings(tmp_path: Path):
    folder = shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    (folder / "metrics.key").write_text("secret")
    assert "15 rules found" in run_promtool("check", "config", folder / "prometheus.yml")


def test_grafana_finds_the_data_source_and_the_dashboards():
    (sources,) = (yaml.safe_load(file.read_text()) for file in (GRAFANA / "provisioning/datasources").iterdir())
    assert {source["type"] for source in sources["datasources"]} == {"prometheus", "loki"}
    assert [source["name"] for source in sources["datasources"] if source.get("isDefault")] == ["Prometheus"]
    (providers,) = (yaml.safe_load(file.read_text()) for file in (GRAFANA / "provisioning/dashboards").iterdir())
    assert [provider["options"]["path"] for provider in providers["providers"]] == [DASHBOARDS_IN_CONTAINER]
    assert list(DASHBOARDS_FOLDER.glob("*.json"))
