"""`just cluster-page` where there is no cluster, and on an API server of ours with a `kubectl` that talks about it."""

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from deploy import cluster_page
from edge.power.drivers import kubernetes
from schemas.host_config import KubernetesHostConfig
from tests.support.kubelet import Kubelet
from tests.support.kubernetes_api import NAMESPACE, KubernetesApi

ROOT = Path(__file__).parents[2]


def install_kubectl(folder: Path, script: str) -> None:
    program = folder / "kubectl"
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "there is no kubectl here: install it, and choose a context"),
        ("import sys; sys.exit('error: current-context is not set')", "error: current-context is not set"),
    ],
)
def test_it_refuses_where_there_is_no_cluster(tmp_path: Path, script: str | None, why: str) -> None:
    if script is not None:
        install_kubectl(tmp_path, script)
    before = cluster_page.PAGE.read_bytes()
    environ = os.environ | {"PATH": str(tmp_path)}
    argv = [sys.executable, "-m", "deploy.cluster_page"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT, env=environ)
    assert (done.returncode, done.stdout.startswith("no cluster to write about: ")) == (2, True)
    assert why in done.stdout
    assert cluster_page.PAGE.read_bytes() == before


def test_the_manifests_are_moved_to_another_namespace() -> None:
    for name in ("access.yaml", "pilot.yaml", "join.yaml", "network.yaml"):
        for manifest in yaml.safe_load_all(cluster_page.manifests(name, "check")):
            place = manifest["metadata"]
            assert place["name" if manifest["kind"] == "Namespace" else "namespace"] == "check"
            assert {subject["namespace"] for subject in manifest.get("subjects", ())} <= {"check"}


def test_the_probe_sleeps_under_the_restrictions_of_a_pilot() -> None:
    made = json.loads(cluster_page.probe_template("check", "box:1", with_gpu=False))
    (container,) = made["template"]["spec"]["containers"]
    assert (container["image"], container["command"], container["env"]) == ("box:1", ["sleep", "600"], [])
    assert container["resources"] == {}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False


async def test_a_pod_is_switched_on_and_off_and_each_state_is_said(tmp_path: Path) -> None:
    api, said = KubernetesApi(), list[str]()
    api.pod_templates["lamplighter-pilot"] = json.loads(cluster_page.probe_template(NAMESPACE, "box:1", with_gpu=False))
    (tmp_path / "token").write_text("token-1")
    async with api.serve() as server, Kubelet(api, tmp_path, {"PATH": os.environ["PATH"]}).run():
        declared = KubernetesHostConfig(server=server, namespace=NAMESPACE, token_file=tmp_path / "token")
        await cluster_page.switch_pod(declared, said.append)
    assert api.pods == {}
    assert said[0] == f"start: the driver creates Pod {kubernetes.pod_name(cluster_page.HOST)}"
    states = [line.split()[-1] for line in said if line.startswith("  ")]
    assert (states[0], states[-1]) == ("on", "off")


def test_the_page_keeps_its_mark() -> None:
    made = cluster_page.with_output(cluster_page.PAGE.read_text(), datetime(2026, 12, 1, tzinfo=UTC), "Kubernetes v1\n")
    assert made.endswith("\nOn 2026-12-01:\n\n```text\nKubernetes v1\n```\n")
    with pytest.raises(ValueError, match="lost its mark"):
        cluster_page.with_output("nothing", datetime(2026, 12, 1, tzinfo=UTC), "")
