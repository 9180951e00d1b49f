"""A real Prometheus with the settings of deploy/prometheus, at other addresses and with a scrape every second."""

import os
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx2
import yaml
from msgspec import Struct

from deploy.alert_rules import AlertRule, rules_file
from tests.support.http_server import open_client
from tests.support.installation import ROOT
from tests.support.prometheus_tools import find_program
from tests.support.reserved_ports import address_of, reserve_port
from tests.support.wait import wait_for

SETTINGS = ROOT / "deploy/prometheus/prometheus.yml"
INTERVAL = "1s"
ALERT_TIMEOUT_S = 60.0


class PrometheusServer(Struct, frozen=True):
    """A running Prometheus, by its HTTP API."""

    http: httpx2.AsyncClient

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query."""
        answer = await self.http.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == httpx2.codes.OK, answer.text
        series: list[dict[str, Any]] = answer.json()["data"]["result"]
        return series

    async def has_values(self, expression: str, start: float, end: float) -> bool:
        """Return whether the expression has a value that is a number at any second from `start` to `end`."""
        given = {"query": expression, "start": start, "end": end, "step": 1}
        answer = await self.http.get("/api/v1/query_range", params=given)
        assert answer.status_code == httpx2.codes.OK, answer.text
        return any(value != "NaN" for row in answer.json()["data"]["result"] for _, value in row["values"])

    async def firing(self) -> dict[str, list[dict[str, str]]]:
        """Return the labels of the alerts that fire, by condition."""
        found: dict[str, list[dict[str, str]]] = {}
        for alert in (await self.http.get("/api/v1/alerts")).json()["data"]["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["condition"], []).append(alert["labels"])
        return found

    async def wait_until_fires(self, condition: str, **labels: str) -> None:
        """Wait until the alert fires with these labels."""

        async def fires() -> bool:
            return any(labels.items() <= alert.items() for alert in (await self.firing()).get(condition, ()))

        fires.__qualname__ = f"the alert {condition} with {labels}"
        await wait_for(fires, timeout_s=ALERT_TIMEOUT_S, interval_s=0.2)

    async def wait_until_gone(self, *conditions: str) -> None:
        """Wait until none of these alerts fires."""

        async def gone() -> bool:
            return not set(conditions) & (await self.firing()).keys()

        gone.__qualname__ = f"the end of {conditions}"
        await wait_for(gone, timeout_s=ALERT_TIMEOUT_S, interval_s=0.2)


def _write_settings(folder: Path, targets: Mapping[str, str], key: str, rules: Sequence[AlertRule]) -> Path:
    """Write the settings of deploy/prometheus with other targets, by the name of the scrape job."""
    folder.mkdir()
    settings = yaml.safe_load(SETTINGS.read_text())
    settings["global"] = {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}
    settings["scrape_configs"] = [
        scrape | {"static_configs": [{"targets": [targets[scrape["job_name"]]]}]}
        for scrape in settings["scrape_configs"]
        if scrape["job_name"] in targets
    ]
    (folder / "metrics.key").write_text(key)
    (folder / "rules.yaml").write_text(rules_file(rules))
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings))
    return file


@asynccontextmanager
async def run_prometheus(
    folder: Path, targets: Mapping[str, str], key: str, rules: Sequence[AlertRule]
) -> AsyncIterator[PrometheusServer]:
    """Run a Prometheus with its files in `folder`. `targets`: address by scrape job. `key`: for the edge."""
    program = find_program("prometheus")
    file = _write_settings(folder, targets, key, rules)
    with reserve_port() as port, (folder / "log").open("wb") as log:
        argv = [program, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
        process = await anyio.open_process(
            [*argv, f"--web.listen-address={address_of(port)}"],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "GOMAXPROCS": "1"},
        )
        try:
            async with open_client(f"http://{address_of(port)}") as http:
                await wait_for(lambda: _is_ready(http, process, folder / "log"), timeout_s=60)
                yield PrometheusServer(http)
        finally:
            with anyio.CancelScope(shield=True), suppress(ProcessLookupError):
                process.kill()
                await process.wait()


async def _is_ready(http: httpx2.AsyncClient, process: anyio.abc.Process, log: Path) -> bool:
    assert process.returncode is None, f"Prometheus has ended: {log}"
    with suppress(httpx2.HTTPError):
        return (await http.get("/-/ready")).status_code == httpx2.codes.OK
    return False
