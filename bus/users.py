"""The broker's users and exactly what each may do, as data; and the nats.conf that is made from it.

The list of the runner's rights is DESIGN 3's: it binds, it never creates. Whoever holds them can still end any job
(the claim in the record is a fence against accidents, not against a hostile runner).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bus.buckets import HOSTS, POWER, TOMBSTONES

ANY_HOST = "*"
STORE_BYTES = 20 * 1024**3


class User(NamedTuple):
    """A broker user. Every inbox of its connection starts with `inbox`, so users cannot read each other's answers."""

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    inbox: str


def inbox(name: str) -> str:
    """The inbox prefix of a user."""
    return f"_INBOX_{name}"


def _user(name: str, publish: tuple[str, ...], subscribe: tuple[str, ...]) -> User:
    return User(name, publish, (f"{inbox(name)}.>", *subscribe), inbox(name))


EDGE = User("edge", (">",), (">",), inbox("edge"))

# For what client libraries do by themselves: a consumer without a name, asking how it stands, flow control. It cannot
# be held to reading: the broker checks neither where a consumer delivers to nor where an answer goes.
READER = _user(
    "reader",
    (
        "$JS.API.STREAM.INFO.FEED",
        "$JS.API.CONSUMER.CREATE.FEED",
        "$JS.API.CONSUMER.CREATE.FEED.>",
        "$JS.API.CONSUMER.INFO.FEED.>",
        "$JS.API.CONSUMER.MSG.NEXT.FEED.>",
        "$JS.API.CONSUMER.DELETE.FEED.>",
        "$JS.ACK.FEED.>",
        "$JS.FC.FEED.>",
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
    return _user(runner_name(host), publish, (f"ctl.{host}", "wake.*"))


def users(hosts: tuple[str, ...] = ()) -> tuple[User, ...]:
    """Everybody: the edge, the runner of any host, one runner for each of `hosts`, the outside reader."""
    return (EDGE, runner(), *(runner(host) for host in hosts), READER)


def _secret(password: str) -> str:
    """A value that starts with `$` names a variable of the broker's environment and stays unquoted."""
    return password if password.startswith("$") else json.dumps(password)


def _block(user: User, password: str) -> str:
    return (
        f"    {{ user: {json.dumps(user.name)}, password: {_secret(password)}, permissions: {{\n"
        f"        publish: {json.dumps(user.publish)}\n"
        f"        subscribe: {json.dumps(user.subscribe)} }} }}\n"
    )


def blocks(passwords: Mapping[str, str], hosts: tuple[str, ...] = ()) -> str:
    """The users with a password in `passwords` (by user name), as they stand in nats.conf; the others do not exist."""
    known = {user.name: user for user in users(hosts)}
    return "".join(_block(known[name], password) for name, password in passwords.items())


def listed(*given: str) -> str:
    """A file for `authorization { include … }` of the `blocks` given. nats-server includes no part of a list."""
    return f"users: [\n{''.join(given)}]\n"


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
    """Where the broker listens and stores, and the file of its users, which is the same on all servers of a cluster."""

    listen: str
    monitor: str
    store_dir: str
    users: str
    store_bytes: int = STORE_BYTES
    tls: Tls | None = None
    cluster: Cluster | None = None


def render(place: Place) -> str:
    """nats.conf. With `tls` every client has to speak it, the local ones too."""
    paths = place.tls and [json.dumps(str(path.resolve())) for path in place.tls]
    return (
        f"listen: {json.dumps(place.listen)}\n"
        f"http: {json.dumps(place.monitor)}\n"
        "max_payload: 2MB\n"
        f"jetstream {{\n    store_dir: {json.dumps(place.store_dir)}\n"
        "    # The default syncs every two minutes: a power cut would take acknowledged jobs with it.\n"
        "    sync_interval: always\n"
        f"    max_file_store: {place.store_bytes}\n    max_memory_store: 64MB\n}}\n"
        f"authorization {{ include {json.dumps(place.users)} }}\n"
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
