"""The manifests of deploy/kubernetes: valid in three releases, with the rights that the driver uses and no others."""

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from edge.power.drivers.kubernetes import pilot_manifest
from edge.settings import EdgeSettings
from runner.settings import RunnerSettings
from schemas.host_config import KubernetesHostConfig
from schemas.settings_loader import load_settings
from tests.support.doc_pages import DOCS, ROOT, read_listed_blocks
from tests.support.kubernetes_api import PILOT_VERBS

FOLDER = ROOT / "deploy" / "kubernetes"
RELEASES = ("1.35", "1.36", "1.37")
MANIFESTS = {
    f"{file.stem}-{manifest['kind']}": manifest
    for file in sorted(FOLDER.glob("*.yaml"))
    for manifest in yaml.safe_load_all(file.read_text())
}


def variables(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in pod["spec"]["containers"][0]["env"]}


@pytest.fixture
def pilot() -> dict[str, Any]:
    return pilot_manifest(MANIFESTS["pilot-PodTemplate"]["template"], "k8s-1")


def test_every_file_is_here() -> None:
    assert {name.partition("-")[0] for name in MANIFESTS} == {"access", "pilot", "join", "network"}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_a_manifest_is_valid(name: str, release: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], release, strict=True)
    assert MANIFESTS[name]["metadata"].get("namespace", "lamplighter") == "lamplighter"


@pytest.mark.parametrize("release", RELEASES)
def test_a_field_that_does_not_exist_is_found(release: str) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**MANIFESTS["pilot-PodTemplate"], "spec": {}}, release, strict=True)


@pytest.mark.parametrize("release", RELEASES)
def test_the_pod_that_the_driver_makes_of_the_template_is_valid(pilot: dict[str, Any], release: str) -> None:
    kubernetes_validate.validate(pilot, release, strict=True)
    assert variables(pilot)["LAMPLIGHTER_HOST"]["value"] == "k8s-1"


def test_the_role_allows_what_the_driver_asks_for_and_no_more() -> None:
    """The tests of the driver run with these verbs: any other one is answered with 403."""
    rules = MANIFESTS["access-Role"]["rules"]
    assert {rule["apiGroups"][0] for rule in rules} == {""}
    granted = {f"{verb} {kind}" for rule in rules for kind in rule["resources"] for verb in rule["verbs"]}
    assert granted == PILOT_VERBS


def test_the_pilot_is_what_the_page_says(pilot: dict[str, Any]) -> None:
    spec, container = pilot["spec"], pilot["spec"]["containers"][0]
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    token = variables(pilot)["LAMPLIGHTER_JOIN"]["valueFrom"]["secretKeyRef"]
    assert token["name"] == MANIFESTS["join-Secret"]["metadata"]["name"]
    assert token["key"] in MANIFESTS["join-Secret"]["stringData"]
    label = MANIFESTS["network-NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items()
    assert label <= pilot["metadata"]["labels"].items()


def test_the_runner_has_time_to_drain_and_knows_its_settings(pilot: dict[str, Any]) -> None:
    given = variables(pilot)
    assert float(given["LAMPLIGHTER_GRACE_S"]["value"]) < pilot["spec"]["terminationGracePeriodSeconds"]
    settings = {name.removeprefix("LAMPLIGHTER_").lower() for name in given} - {"join"}
    assert settings <= set(RunnerSettings.__struct_fields__)


def test_the_page_declares_hosts_and_applies_manifests_that_are_there() -> None:
    page = DOCS / "kubernetes.md"
    settings = load_settings(EdgeSettings, "\n".join(read_listed_blocks(page, "toml")), {})
    declared = [host for name, host in settings.hosts.items() if name.startswith("k8s-")]
    assert len(declared) == 3
    assert all(isinstance(host, KubernetesHostConfig) for host in declared)
    applied = re.findall(r"kubectl apply -f (\S+)", "\n".join(read_listed_blocks(page, "text")))
    assert applied
    assert [file for file in applied if not (ROOT / file).is_file()] == []
