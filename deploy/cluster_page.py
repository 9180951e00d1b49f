"""Run the steps of docs/kubernetes.md on the cluster of kubectl's current context. Run: just cluster-page.

It works in a namespace of its own, which it deletes at the end, and writes what it saw into the page.
"""

import base64
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import yaml

from edge.power.drivers.kubernetes import KubernetesDriver, pod_name
from schemas.host_config import KubernetesHostConfig
from schemas.power import PowerCallFailed, ReportedPower

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "kubernetes.md"
MANIFESTS = ROOT / "deploy" / "kubernetes"
MARK = "<!-- what follows is written by `just cluster-page` -->\n"
DEFAULT_IMAGE = "busybox:1.36"
HOST = "k8s-1"
WAIT_LIMIT_S = 300.0
EXIT_NO_CLUSTER = 2

Say = Callable[[str], None]


class ClusterRefused(Exception):
    """A step failed; the message says which, and what kubectl said."""


def kubectl(*args: str, stdin: str | None = None) -> str:
    """Run kubectl in the current context; return what it printed. Raises ClusterRefused."""
    try:
        done = subprocess.run(["kubectl", *args], input=stdin, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError as error:
        raise ClusterRefused("there is no kubectl here: install it, and choose a context") from error
    if done.returncode:
        raise ClusterRefused(f"kubectl {' '.join(args)}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def manifests(name: str, namespace: str) -> str:
    """Return a file of deploy/kubernetes for this namespace."""
    text = (MANIFESTS / name).read_text()
    return text.replace("namespace: lamplighter\n", f"namespace: {namespace}\n").replace(
        "kind: Namespace\nmetadata:\n  name: lamplighter\n", f"kind: Namespace\nmetadata:\n  name: {namespace}\n"
    )


def probe_template(namespace: str, image: str, *, with_gpu: bool) -> str:
    """Return our PodTemplate with a container that only sleeps, as JSON."""
    template: dict[str, Any] = yaml.safe_load(manifests("pilot.yaml", namespace))
    container = template["template"]["spec"]["containers"][0]
    container |= {"image": image, "command": ["sleep", "600"], "args": [], "env": []}
    container["resources"] = {"limits": {"nvidia.com/gpu": "1"}} if with_gpu else {}
    return json.dumps(template)


@contextmanager
def made_namespace(namespace: str, say: Say) -> Iterator[None]:
    """Apply what the edge needs, in a namespace that is deleted at the end."""
    kubectl("apply", "-f", "-", stdin=manifests("access.yaml", namespace))
    say(f"applied access.yaml in {namespace}")
    try:
        yield
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false")


def declare_host(folder: Path, namespace: str) -> KubernetesHostConfig:
    """Return the settings of a host, with the server, token and authority of the current context."""
    cluster = json.loads(kubectl("config", "view", "--minify", "--raw", "-o", "json"))["clusters"][0]["cluster"]
    token_file, ca_file = folder / "token", folder / "ca.crt"
    token_file.write_text(kubectl("-n", namespace, "create", "token", "lamplighter-edge"))
    authority = cluster.get("certificate-authority-data")
    if authority:
        ca_file.write_bytes(base64.b64decode(authority))
    return KubernetesHostConfig(
        server=cluster["server"], namespace=namespace, token_file=token_file, ca_file=ca_file if authority else None
    )


async def switch_pod(declared: KubernetesHostConfig, say: Say) -> None:
    """Switch a host on and off by the driver. Raises PowerCallFailed, ClusterRefused."""
    driver = KubernetesDriver(HOST, declared, {}, lambda: datetime.now(UTC))
    say(f"start: the driver creates Pod {pod_name(HOST)}")
    await driver.start("page-1")
    await _wait_for(driver, ReportedPower.ON, say)
    say("start again: nothing is created twice")
    await driver.start("page-2")
    say("stop: the driver deletes it")
    await driver.stop("page-3")
    await _wait_for(driver, ReportedPower.OFF, say)


async def _wait_for(driver: KubernetesDriver, wanted: ReportedPower, say: Say) -> None:
    began, last = time.monotonic(), None
    while time.monotonic() - began < WAIT_LIMIT_S:
        state = await driver.state()
        if state is not last:
            say(f"  {time.monotonic() - began:5.1f} s  {state}")
        if state is wanted:
            return
        last = state
        await anyio.sleep(0.5)
    raise ClusterRefused(f"the Pod was not {wanted} within {WAIT_LIMIT_S:.0f} s")


def check_rights(namespace: str, say: Say) -> None:
    """Let the API server say what the edge may do. Raises ClusterRefused if that is too much or too little."""
    account = f"--as=system:serviceaccount:{namespace}:lamplighter-edge"
    for verb, kind, allowed in (("create", "pods", "yes"), ("delete", "pods", "yes"), ("get", "secrets", "no")):
        done = subprocess.run(
            ["kubectl", "-n", namespace, "auth", "can-i", verb, kind, account],
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout.strip()
        say(f"may the edge {verb} {kind}? {said}")
        if said != allowed:
            raise ClusterRefused(f"the edge may {verb} {kind}: {said}, and it should be {allowed}")


def with_output(page: str, at: datetime, output: str) -> str:
    """Return the page with everything below its mark replaced by this output."""
    head, mark, _ = page.partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE.name} has lost its mark: {MARK.strip()}")
    return f"{head}{mark}\nOn {at:%Y-%m-%d}:\n\n```text\n{output.strip()}\n```\n"


def run_steps(environ: Mapping[str, str], say: Say) -> None:
    """Run all steps. Raises ClusterRefused, PowerCallFailed."""
    namespace = f"lamplighter-check-{secrets.token_hex(3)}"
    version = json.loads(kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    say(f"Kubernetes {version}")
    with made_namespace(namespace, say), tempfile.TemporaryDirectory() as folder:
        for name in ("join.yaml", "network.yaml", "pilot.yaml"):
            kubectl("apply", "--dry-run=server", "-f", "-", stdin=manifests(name, namespace))
            say(f"the API server takes {name}")
        image = environ.get("PILOT_IMAGE", DEFAULT_IMAGE)
        with_gpu = environ.get("PILOT_GPU") == "1"
        kubectl("apply", "-f", "-", stdin=probe_template(namespace, image, with_gpu=with_gpu))
        check_rights(namespace, say)
        anyio.run(switch_pod, declare_host(Path(folder), namespace), say)


def main() -> int:
    """Run the steps and write the page. Return 0, 1 if a step failed, or 2 if there is no cluster."""
    try:
        context = kubectl("config", "current-context")
        kubectl("version", "-o", "json", "--request-timeout=10s")
    except ClusterRefused as error:
        print(f"no cluster to write about: {error}; choose a context of kubectl whose cluster answers")
        return EXIT_NO_CLUSTER
    print(f"using the context {context}")
    lines: list[str] = []

    def say(line: str) -> None:
        print(line)
        lines.append(line)

    failed = ""
    try:
        run_steps(os.environ, say)
    except (ClusterRefused, PowerCallFailed) as error:
        failed = str(error)
        say(f"FAILED: {failed}")
    PAGE.write_text(with_output(PAGE.read_text(), datetime.now(UTC), "\n".join(lines)))
    print(f"{PAGE.name} says now what happened")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
