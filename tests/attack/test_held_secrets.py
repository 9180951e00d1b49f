"""Held: no secret of `up` is in a log, on a command line, or in a file that others read; no input is in a log."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamplighter import Client, Unauthorized
from lamplighter.api import ApiRequest, decode_json
from schemas.credentials import decode_join_token
from schemas.installation import BY_UP
from schemas.job import Status
from tests.backup.test_drill import client_of, reached
from tests.e2e.test_up import children, lamplighter, up
from tests.support.reserved_ports import reserve_ports

HERE = "127.0.0.1"
INPUT = "what ann wants nobody to read"
WRONG = "lamp_nobody_" + "s3cr3t" * 6
JOBS = ApiRequest(method="GET", path="/v1/jobs", read=decode_json)
LEAST = 16  # characters; shorter values in the files of secrets are names and numbers
SECRET_FILES = ("keys.json", "broker.json")

pytestmark = pytest.mark.timeout(180)


def texts(value: object) -> Iterator[str]:
    """Return the secrets in a JSON value: the long texts that are not addresses."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)
    elif isinstance(value, str) and len(value) >= LEAST and "://" not in value:
        yield value


def holders(data: Path, secrets: set[str]) -> list[Path]:
    """Return the files below `data` that contain one of `secrets`."""
    files = [path for path in data.rglob("*") if path.is_file()]
    return [path for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]


def worked(client: Client, url: str) -> str:
    """Run a job, send a wrong key, and create a token. Return the token."""
    reached(client, client.submit("echo", text=INPUT), Status.SUCCEEDED)
    with Client(url, WRONG) as stranger, pytest.raises(Unauthorized):
        stranger.call(JOBS)
    trail = client.call(ApiRequest(method="GET", path="/v1/audit", read=decode_json))["events"]
    made = [event["scopes"] for event in trail if (event["action"], event["by"]) == ("key_created", BY_UP)]
    assert sorted(made) == [["admin"], ["runner"]], "the keys that up made for itself are in the trail"
    return str(client.call(ApiRequest(method="POST", path="/v1/tokens", read=decode_json, body={}))["token"])


def test_secrets_stay_in_files_of_their_user(tmp_path: Path):
    data = tmp_path / "data"
    with reserve_ports(2) as (tls, broker):
        public = ("--no-runner", "--public", HERE, "--listen", HERE)
        ports = ("--tls-port", str(tls), "--broker-port", str(broker))
        with up(data, *public, *ports) as (_, said):
            invited = decode_join_token(lamplighter(data, "hosts", "add", "gpu-1").stdout.split()[-1])
            assert said["key"]
    with up(data) as (process, said), client_of(said, tmp_path) as client:
        token = worked(client, said["url"])
        secrets = {secret for name in SECRET_FILES for secret in texts(json.loads((data / name).read_bytes()))}
        assert {said["key"], *json.loads((data / "keys.json").read_bytes()).values()} <= secrets
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(process.pid)]
        found = holders(data, secrets)
        exposed = [path for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert not [command for command in commands for secret in secrets if secret.encode() in command]
    assert {data / name for name in SECRET_FILES} <= set(found)
    assert not exposed
    logs = sorted((data / "logs").rglob("*.log*"))
    assert {"edge.log", "runner.log"} <= {log.name for log in logs}
    shown = {*secrets, token, invited.key, invited.password, INPUT, WRONG}
    assert not [(log, text) for log in logs for text in shown if text.encode() in log.read_bytes()]
    assert not holders(data, {invited.key, invited.password}), "only hashes of what a host was given are kept"
