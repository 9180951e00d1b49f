"""A host's warm slots and its way of giving GPUs to containers, as `hosts` and `doctor` tell them."""

from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from msgspec.structs import replace

from edge.hosts.registry import UNREADABLE_HEARTBEAT, UPGRADE_EDGE
from lamplighter.cli import display
from lamplighter.cli.context import EdgeAddress
from lamplighter.cli.doctor import CheckStatus, DoctorTarget, Finding, check_hosts
from lamplighter.cli.hosts import version_warning
from schemas.host import HostHeartbeat, HostView, KeepReason, KeptOn, VolumeStatus, WarmPoolStatus

EDGE_VERSION = "0.4.0"
DIED = WarmPoolStatus("heygem", 0, 1, "the container died while it waited: no weights", 8.0)


@pytest.mark.parametrize(
    ("slots", "told"),
    [
        (WarmPoolStatus("echo", 2, 0), "echo: 2 ready"),
        (WarmPoolStatus("echo", 1, 1), "echo: 1 ready, 1 loading"),
        (WarmPoolStatus("echo", 0, 0), "echo: none"),
        (WarmPoolStatus("echo", 0, 0, "exit 1", 7.6), "echo: none, next try in 8 s (exit 1)"),
        (WarmPoolStatus("echo", 0, 1, "exit 1"), "echo: 1 loading, trying again (exit 1)"),
    ],
)
def test_warm_slots_in_words(slots: WarmPoolStatus, told: str):
    assert display.format_warm_slots(msgspec.to_builtins(slots)) == told


def test_why_a_host_is_on_in_words():
    kept_on = (KeptOn(KeepReason.OPERATOR, "The operator wants it on"), KeptOn(KeepReason.JOBS_RUN, "Jobs run there"))
    view = HostView(id="gpu-1", state="online", kept_on=kept_on)
    told = display.describe_kept_on(msgspec.to_builtins(view))
    assert told == "gpu-1 is on: The operator wants it on; Jobs run there"
    assert not display.describe_kept_on({"id": "gpu-1"})  # an edge before this release


def found(**host: Any) -> dict[str, Finding]:
    """What doctor finds of a host that speaks like this."""
    view = HostView(id="gpu-1", state="online", **host)
    answer = msgspec.json.encode({"hosts": [view], "version": EDGE_VERSION})
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=answer))
    with httpx2.Client(base_url="http://edge", transport=transport) as http:
        patient = DoctorTarget(EdgeAddress("http://edge", "key"), Path(), http)
        return {finding.name: finding for finding in check_hosts(patient)}


def test_doctor_tells_the_way_of_injection_and_what_does_not_warm():
    findings = found(injection="cdi", warm=(DIED, WarmPoolStatus("echo", 1, 0)))
    assert findings["gpu access of gpu-1"].what == "given to containers by cdi"
    slots = [finding for finding in found(warm=(DIED,)).values() if finding.name == "warm slots of gpu-1"]
    assert [(one.verdict, "no weights" in one.what) for one in slots] == [(CheckStatus.WARN, True)]


def test_doctor_fails_where_no_way_works_and_is_silent_where_none_was_tried():
    assert found(injection="none")["gpu access of gpu-1"].verdict is CheckStatus.FAIL
    assert "gpu access of gpu-1" not in found()


@pytest.mark.parametrize(
    ("host", "shown", "words", "verdict", "found_as"),
    [
        ({}, "-", None, None, None),
        (
            {"engine": "docker"},
            "docker",
            "gpu-1 runs jobs in containers, by docker",
            CheckStatus.OK,
            "jobs run by docker",
        ),
        (
            {"engine": "docker", "engine_away": "no socket"},
            "docker, away",
            "gpu-1 starts no jobs until docker answers there (no socket): start it",
            CheckStatus.FAIL,
            "docker does not answer, jobs wait: no socket",
        ),
        (
            {"engine": "process", "run_as": "nobody"},
            "process as nobody",
            "gpu-1 runs jobs as plain processes of the user nobody, not in containers",
            CheckStatus.WARN,
            "jobs run as plain processes of nobody, not in containers",
        ),
        (
            {"engine": "process", "run_as": "nobody", "isolation": "bubblewrap"},
            "process as nobody",
            "gpu-1 runs jobs in sandboxes of bubblewrap",
            CheckStatus.OK,
            "jobs run as processes of nobody, each in a sandbox of bubblewrap",
        ),
        (
            {"engine": "process"},
            "process",
            "plain processes of the runner's user",
            CheckStatus.WARN,
            "the runner's user",
        ),
    ],
)
def test_what_runs_jobs_is_reported_by_hosts_up_and_doctor(
    host: dict[str, str], shown: str, words: str | None, verdict: CheckStatus | None, found_as: str | None
):
    view = msgspec.to_builtins(HostView(id="gpu-1", state="online", **host))
    assert display.format_engine(view) == shown
    assert words is None or words in display.describe_engine(view)
    finding = found(**host).get("engine of gpu-1")
    assert (finding and finding.verdict) == verdict
    assert finding is None or found_as in finding.what


def test_doctor_says_which_gpus_a_runner_uses():
    finding = found(gpus_assigned="2 of 4 (CUDA_VISIBLE_DEVICES=0,2)")["gpus of gpu-1"]
    assert (finding.verdict, finding.what) == (CheckStatus.OK, "its runner uses 2 of 4 (CUDA_VISIBLE_DEVICES=0,2)")


def test_doctor_says_that_a_host_has_secrets_on_its_disk():
    finding = found(secrets_on_disk=True)["secrets of gpu-1"]
    assert (finding.verdict, "secrets_folder" in finding.fix) == (CheckStatus.WARN, True)
    assert "secrets of gpu-1" not in found(secrets_on_disk=False)


def test_doctor_tells_of_an_engine_that_is_away_once():
    rows = found(
        engine="docker", engine_away="no socket", unschedulable={"echo": "engine_away", "heygem": "engine_away"}
    )
    assert [name for name, row in rows.items() if row.verdict is not CheckStatus.OK] == ["engine of gpu-1"]


@pytest.mark.parametrize(
    ("version", "verdict", "text"),
    [
        ("0.3.9", CheckStatus.OK, "runner 0.3.9"),
        ("0.2.0", CheckStatus.WARN, "its runner is 0.2.0 and the edge 0.4.0, more than one release apart"),
        ("0.6.0", CheckStatus.WARN, "its runner is 0.6.0 and the edge 0.4.0, more than one release apart"),
    ],
)
def test_doctor_warns_of_a_runner_that_is_far_from_its_edge(version: str, verdict: CheckStatus, text: str):
    finding = found(version=version)["version of gpu-1"]
    assert (finding.verdict, finding.what) == (verdict, text)
    assert finding.fix == ("" if verdict is CheckStatus.OK else "upgrade the older one")


def test_a_runner_or_an_edge_that_tells_no_version_is_not_judged():
    assert "version of gpu-1" not in found()
    assert version_warning(None, {"version": "9.0.0"}) is None


def runner_findings(view: HostView) -> list[Finding]:
    """Return what `doctor` finds about the runner of a host."""
    answer = msgspec.json.encode({"hosts": [view]})
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=answer))
    with httpx2.Client(base_url="http://edge", transport=transport) as http:
        rows = check_hosts(DoctorTarget(EdgeAddress("http://edge", "k"), Path(), http))
        return [row for row in rows if row.name == f"runner of {view.id}"]


@pytest.mark.parametrize(
    ("task", "what", "fix"),
    [
        (
            "power it on (lamplighter: the controller is away (no answer): start slurmctld): the edge asks again",
            "cannot power it on (lamplighter: the controller is away (no answer): start slurmctld)",
            "the edge asks again",
        ),
        (
            "为其开机（lamplighter：控制器没有响应（no answer）：请启动 slurmctld）：edge 会自动再次请求其驱动",
            "cannot 为其开机（lamplighter：控制器没有响应（no answer）：请启动 slurmctld）",
            "edge 会自动再次请求其驱动",
        ),
    ],
)
def test_doctor_keeps_the_reason_of_a_driver_whole_in_both_languages(task: str, what: str, fix: str):
    (row,) = runner_findings(HostView(id="slurm-1", state="blocked", waits=(task,)))
    assert (row.what, row.fix) == (what, fix)


def test_doctor_tells_what_a_runner_waits_for():
    refused = UNREADABLE_HEARTBEAT.format(why="Expected `str`, got `int` - at `$.incarnation`", fix=UPGRADE_EDGE)
    unread = "fetch input: the edge is not reachable (ConnectError): check its address and the network"
    waits = (unread, "remove: busy", refused)
    view = HostView(id="gpu-1", state="online", waits=waits)
    assert [(row.verdict, row.what, row.fix) for row in runner_findings(view)] == [
        (
            CheckStatus.WARN,
            "cannot fetch input: the edge is not reachable (ConnectError)",
            "check its address and the network",
        ),
        (CheckStatus.WARN, "cannot remove: busy", "read that runner's log"),
        (
            CheckStatus.WARN,
            "cannot send heartbeats that this edge can read (Expected `str`, got `int` - at `$.incarnation`)",
            "upgrade the edge to the release of that runner",
        ),
    ]


def test_doctor_tells_which_endpoint_cannot_start_and_how_to_mend_it():
    seen = found(unschedulable={"echo": "image_missing"})["echo on gpu-1"]
    assert (seen.verdict, "image_missing" in seen.what, "build or pull" in seen.fix) == (CheckStatus.WARN, True, True)


def test_a_volume_that_is_not_there_is_shown_with_what_to_do():
    broken = VolumeStatus(
        volume="a" * 64,
        names=("weights",),
        endpoints=("lips",),
        state="missing",
        why="models.test has no unet.pth of the volume weights (it answered 404): correct its `url` in endpoint.toml",
    )
    seen = found(volumes=(broken,))["volume weights on gpu-1"]
    assert (seen.verdict, seen.what, seen.fix) == (
        CheckStatus.WARN,
        "models.test has no unet.pth of the volume weights (it answered 404)",
        "correct its `url` in endpoint.toml",
    )
    filling = replace(broken, state="filling", why=None, done_bytes=10**9, total_bytes=4 * 10**9, percent=25)
    seen = found(volumes=(filling,))["volume weights on gpu-1"]
    assert (seen.verdict, seen.what) == (CheckStatus.OK, "is being downloaded: 25 %, 1.0 GB / 4.0 GB")
    assert display.format_images({"volumes": [msgspec.to_builtins(filling)]}) == "weights: 25 %, 1.0 GB / 4.0 GB"
    assert display.format_images({"volumes": [msgspec.to_builtins(replace(filling, state="ready"))]}) == "-"


def test_the_word_of_an_older_runner_is_still_understood():
    """It knows nothing of `injection`, nor of when a slot is tried again."""
    said = b'{"host":"gpu-1","incarnation":"a","at":"2026-11-21T00:00:00Z","since":"2026-11-21T00:00:00Z"'
    said += b',"warm":[{"endpoint":"echo","ready":1,"loading":0}]}'
    older = msgspec.json.decode(said, type=HostHeartbeat)
    assert (older.injection, older.warm) == (None, (WarmPoolStatus("echo", 1, 0),))
    assert (older.engine_away, older.run_as) == (None, None)
