"""The broker's users and exactly what each may do, as data; and the nats.conf around them.

A runner binds to what is there, it never creates. Each user but the edge's has an account of its own (`bus.accounts`),
so that the answer to a call is not a way to write. What a runner's password still allows, beside running jobs:

- read the record of any job, and write any record: end a job, or give it a result (the claim in the record is a fence
  against accidents, not against a hostile runner)
- acknowledge or postpone any message of JOBS, so that its job waits until the edge offers it again
- say progress and log of any job

It cannot read or write a key, a webhook's secret, another host's presence, offer, orders or messages, or a stream.
The reader's password allows to read what is said of any owner's job, and to make and delete readers' consumers.
"""

import json
from pathlib import Path
from typing import NamedTuple

from bus.buckets import HOSTS, POWER, TOMBSTONES

ANY_HOST = "*"
HOME = "LAMPLIGHTER"  # the account of the edge, which holds the streams
STORE_BYTES = 20 * 1024**3


class User(NamedTuple):
    """A broker user, the only one in its account. Every inbox of its connection starts with `inbox`."""

    name: str
    account: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    inbox: str


def inbox(name: str) -> str:
    """The inbox prefix of a user."""
    return f"_INBOX_{name}"


def _user(name: str, account: str, publish: tuple[str, ...], subscribe: tuple[str, ...]) -> User:
    return User(name, account, publish, (f"{inbox(name)}.>", *subscribe), inbox(name))


EDGE = User("edge", HOME, (">",), (">",), inbox("edge"))

# Where an edge makes and deletes consumers for readers (`bus.readers`): a consumer of their own making could deliver to
# any subject of the edge's account.
READER_DESK = "readers."

# For what client libraries do by themselves: a consumer without a name, asking how it stands.
READER = _user(
    "reader",
    "READERS",
    (
        "$JS.API.STREAM.INFO.FEED",
        "$JS.API.CONSUMER.CREATE.FEED",
        "$JS.API.CONSUMER.CREATE.FEED.>",
        "$JS.API.CONSUMER.INFO.FEED.>",
        "$JS.API.CONSUMER.MSG.NEXT.FEED.>",
        "$JS.API.CONSUMER.DELETE.FEED.>",
        "$JS.ACK.FEED.>",
    ),
    (),
)


def runner_name(host: str) -> str:
    """The user of one host's runner; of any host's for `*`."""
    return "runner" if host == ANY_HOST else f"runner-{host}"


def runner(host: str = ANY_HOST) -> User:
    """The runner of `host`: it writes that host's presence and offer, and no other's."""
    publish = (
        "$JS.API.STREAM.INFO.KV_STATE",
        "$JS.API.STREAM.MSG.GET.KV_STATE",
        "$JS.API.CONSUMER.MSG.NEXT.JOBS.*",
        "$JS.ACK.JOBS.>",
        "$KV.STATE.>",
        *(f"$JS.API.DIRECT.GET.{bucket.stream}.>" for bucket in (HOSTS, TOMBSTONES)),
        f"$JS.API.DIRECT.GET.{POWER.stream}.$KV.{POWER.name}.{host}",  # its own order, and nobody else's
        *(f"$JS.API.STREAM.INFO.{bucket.stream}" for bucket in (HOSTS, POWER, TOMBSTONES)),
        "feed.*.*.progress",
        "feed.*.*.log",
        f"$KV.HOSTS.{host}",
        f"$KV.OFFERS.{host}",
    )
    account = "RUNNERS" if host == ANY_HOST else f"HOST_{host}"
    return _user(runner_name(host), account, publish, (f"ctl.{host}", "wake.*"))


def mark(name: str) -> User:
    """Nobody's user: whoever is let in as it knows which list of hosts the broker has read (`bus.roster`)."""
    return _user(f"roster-{name}", f"ROSTER_{name}", (f"$JS.API.DIRECT.GET.{TOMBSTONES.stream}.roster",), ())


def users(hosts: tuple[str, ...] = ()) -> tuple[User, ...]:
    """Everybody: the edge, the runner of any host, one runner for each of `hosts`, the outside reader."""
    return (EDGE, runner(), *(runner(host) for host in hosts), READER)


class Tls(NamedTuple):
    """Files in PEM."""

    cert: Path
    key: Path


class Cluster(NamedTuple):
    """One server's part in a cluster. `server`: its name, no other's. `secret`: what all servers know.

    `listen`, and each of `routes`, its own too: address:port between the servers, where nothing is encrypted.
    """

    server: str
    listen: str
    routes: tuple[str, ...]
    secret: str
    name: str = "lamplighter"


class Place(NamedTuple):
    """Where the broker listens and stores, and the files of its accounts, the same on all servers of a cluster.

    `monitor_path`: what every path of the monitor begins with. The monitor asks for no password and answers web pages,
    so a path that nobody can guess stands for one.
    """

    listen: str
    monitor: str
    store_dir: str
    accounts: tuple[str, ...]
    store_bytes: int = STORE_BYTES
    tls: Tls | None = None
    cluster: Cluster | None = None
    monitor_path: str = ""


def render(place: Place) -> str:
    """nats.conf. With `tls` every client has to speak it, the local ones too."""
    included = "".join(f"    include {json.dumps(file)}\n" for file in place.accounts)
    paths = place.tls and [json.dumps(str(path.resolve())) for path in place.tls]
    return (
        f"listen: {json.dumps(place.listen)}\n"
        f"http: {json.dumps(place.monitor)}\n"
        + (f"http_base_path: {json.dumps(place.monitor_path)}\n" if place.monitor_path else "")
        + "max_payload: 2MB\n"
        f"jetstream {{\n    store_dir: {json.dumps(place.store_dir)}\n"
        "    # The default syncs every two minutes: a power cut would take acknowledged jobs with it.\n"
        "    sync_interval: always\n"
        f"    max_file_store: {place.store_bytes}\n    max_memory_store: 64MB\n}}\n"
        f"accounts {{\n{included}}}\n"
        + (f"tls {{\n    cert_file: {paths[0]}\n    key_file: {paths[1]}\n    timeout: 5\n}}\n" if paths else "")
        + (_cluster(place.cluster) if place.cluster else "")
    )


def _cluster(part: Cluster) -> str:
    routes = [f"nats://route:{part.secret}@{route}" for route in part.routes]
    return (
        f"server_name: {json.dumps(part.server)}\n"
        f"cluster {{\n    name: {json.dumps(part.name)}\n    listen: {json.dumps(part.listen)}\n"
        f"    authorization {{ user: route, password: {json.dumps(part.secret)}, timeout: 2 }}\n"
        f"    routes: {json.dumps(routes)}\n}}\n"
    )
