"""A host that joined before hosts had accounts at the broker: its token and its runner go on, and it can be put out."""

from pathlib import Path

import pytest

from lamplighter import Client
from schemas.credentials import decode_join_token
from schemas.job import Status
from tests.backup.test_drill import client_of, reached
from tests.e2e.test_up import lamplighter, up
from tests.support.command import joined_runner
from tests.support.reserved_ports import reserve_ports

HERE = "127.0.0.1"
ENDED_S = 60.0


def works(client: Client, text: str) -> None:
    reached(client, client.submit("echo", text=text), Status.SUCCEEDED)


@pytest.mark.timeout(300)
def test_a_host_that_joined_before_there_were_accounts_goes_on(before_accounts: Path, tmp_path: Path):
    with reserve_ports(2) as ports:
        _goes_on(before_accounts, tmp_path, *map(str, ports))


def _goes_on(before_accounts: Path, tmp_path: Path, tls: str, broker: str) -> None:
    data = tmp_path / "data"
    public = ("--no-runner", "--public", HERE, "--listen", HERE, "--tls-port", tls, "--broker-port", broker)
    with up(data, *public, tree=before_accounts) as (_, said), client_of(said, tmp_path) as client:
        made = lamplighter(data, "hosts", "add", "gpu-1")
        token = made.stdout.split()[-1]
        with joined_runner(tmp_path / "host", "--join", token, tree=before_accounts):
            works(client, "before")
    # It dials until there is a broker again.
    runner_of_before = joined_runner(tmp_path / "host", tree=before_accounts)
    with runner_of_before as runner, up(data, *public) as (_, said), client_of(said, tmp_path) as client:
        works(client, "a runner of before, and this release")
        assert decode_join_token(token).password not in (data / "broker" / "hosts.conf").read_text()
        assert not (data / "broker" / "joined.conf").exists()
        assert runner.poll() is None
    with (
        up(data, *public) as (_, said),
        client_of(said, tmp_path) as client,
        joined_runner(tmp_path / "host") as runner,
    ):
        works(client, "this release")
        assert lamplighter(data, "hosts", "remove", "gpu-1").returncode == 0
        assert runner.wait(ENDED_S) == 4
        assert runner.stderr is not None
        assert "gpu-1 was removed" in runner.stderr.read()
