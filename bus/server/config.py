"""The broker's accounts and nats.conf as text.

The edge's account holds the streams; each other user has its own account.

Why. The broker checks the subject to which a user publishes, never the subject that the user names for the reply.
Within one account, a reply whose bytes the user chooses (a record of its own, an empty status) would be a write to any
subject: a key, another host's heartbeat, an API call that deletes a stream. Between accounts each reply is mapped to
the account of the requester. There it reaches only the requester's own subscriptions and what its account imports. An
account imports exactly what its user may publish, so a reply can do no more than the user can.

How. The account of the edge exports what any user may call or receive; each other account imports its user's cluster.
Every account has its own JetStream API, which would answer `$JS.API.…` first ("JetStream not enabled for account",
10039). Such calls are imported under another name, to which the account maps the usual one.

An account that a reload adds cannot call anything until the reload after it (nats-server 2.15.1): see
`bus.server.process`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from bus.nats.topology import EDGE, EDGE_ACCOUNT, READER, READER_API_PREFIX, BrokerUser, broker_users, runner_user

# These are not answered by an account's own API, but by a consumer or a stream.
_ANSWERED_BY_STREAM = ("$JS.API.CONSUMER.MSG.NEXT.", "$JS.API.DIRECT.GET.")
_ANSWERED_BY_EDGE = ("$JS.API.CONSUMER.CREATE.", "$JS.API.CONSUMER.DELETE.")
_MULTI_REPLY_PREFIX = "$JS.API.CONSUMER.MSG.NEXT."
_BCRYPT = re.compile(r"\$2[aby]\$\d\d\$")


class AccountImport(NamedTuple):
    """One call that a user may make, and its way to the edge's account.

    `subject` is what the user requests, `name` its name in the user's account, `target` its name in the edge's account.
    """

    subject: str
    name: str
    target: str

    @property
    def exported(self) -> str:
        """The entry among the exports of the edge's account."""
        streaming = ", response_type: stream" if self.target.startswith(_MULTI_REPLY_PREFIX) else ""
        return f"{{ service: {json.dumps(self.target)}{streaming} }}"

    @property
    def imported(self) -> str:
        """The entry among the imports of the user's account."""
        to = "" if self.name == self.target else f", to: {json.dumps(self.name)}"
        return f"{{ service: {{ account: {EDGE_ACCOUNT}, subject: {json.dumps(self.target)} }}{to} }}"


def import_for_subject(subject: str) -> AccountImport:
    """Return how a subject that a user may publish to is imported."""
    if subject.startswith(_ANSWERED_BY_EDGE):
        target = READER_API_PREFIX + subject.removeprefix("$JS.API.")
        return AccountImport(subject, target, target)
    if subject.startswith("$JS.API.") and not subject.startswith(_ANSWERED_BY_STREAM):
        return AccountImport(subject, subject.replace("$JS.API.", "home.", 1), subject)
    return AccountImport(subject, subject, subject)


def _foreign_subscriptions(user: BrokerUser) -> tuple[str, ...]:
    return tuple(subject for subject in user.subscribe if not subject.startswith(user.inbox))


def render_accounts(passwords: Mapping[str, str], hosts: Iterable[str] = ()) -> str:
    """Return the accounts of the users that have a password in `passwords` (by user name).

    `hosts`: hosts whose own runner may be among them, beside the runner of any host.
    """
    known = {user.name: user for user in broker_users(tuple(hosts))}
    others = ((known[name], password) for name, password in passwords.items() if name != EDGE.name)
    return _render_edge_account(passwords[EDGE.name]) + "".join(
        render_account(user, password) for user, password in others
    )


def _render_secret(password: str) -> str:
    """Quote a password. One that starts with `$`, and is not a hash, names an environment variable of the broker."""
    return password if password.startswith("$") and not _BCRYPT.match(password) else json.dumps(password)


def _render_edge_account(password: str) -> str:
    """Export to every account of this broker: there are only those that its configuration names."""
    users = (runner_user(), READER)
    calls = {import_for_subject(subject): None for user in users for subject in user.publish}
    subscribed = {subject: None for user in users for subject in _foreign_subscriptions(user)}
    return (
        f"{EDGE_ACCOUNT} {{\n"
        "    jetstream: enabled\n"
        f"    users: [{{ user: {json.dumps(EDGE.name)}, password: {_render_secret(password)} }}]\n"
        + _render_list(
            "exports", (*(one.exported for one in calls), *(f"{{ stream: {json.dumps(one)} }}" for one in subscribed))
        )
        + "}\n"
    )


def render_account(user: BrokerUser, password: str) -> str:
    """Return the account of a user other than the edge.

    `password`: as text, as a bcrypt hash, or `$` and a variable's name.
    """
    calls = [import_for_subject(subject) for subject in user.publish]
    mapped = {one.subject: one.name for one in calls if one.name != one.subject}
    subscribed = (
        f"{{ stream: {{ account: {EDGE_ACCOUNT}, subject: {json.dumps(subject)} }} }}"
        for subject in _foreign_subscriptions(user)
    )
    return (
        f"{json.dumps(user.account)} {{\n"
        f"    users: [{{ user: {json.dumps(user.name)}, password: {_render_secret(password)}, permissions: {{\n"
        + _render_list("publish", map(json.dumps, (*user.publish, *mapped.values())))
        + _render_list("subscribe", map(json.dumps, user.subscribe))
        + "    }}]\n"
        + _render_list("imports", (*(one.imported for one in calls), *subscribed))
        + _render_mappings(mapped)
        + "}\n"
    )


def _render_list(name: str, items: Iterable[str]) -> str:
    return f"    {name}: [\n" + "".join(f"        {item}\n" for item in items) + "    ]\n"


def _render_mappings(mapped: Mapping[str, str]) -> str:
    lines = "".join(f"        {json.dumps(usual)}: {json.dumps(name)}\n" for usual, name in mapped.items())
    return f"    mappings: {{\n{lines}    }}\n" if mapped else ""


STORE_LIMIT_BYTES = 20 * 1024**3
LOGIN_TIMEOUT_S = 10


class TlsFiles(NamedTuple):
    """The certificate and its key, as PEM files."""

    cert: Path
    key: Path


class ClusterConfig(NamedTuple):
    """The part of one server in a cluster. `secret` is the same on all servers.

    `server`: its unique name. `listen` and `routes`: addresses between the servers. `tls` encrypts what goes there: its
    certificate must name this server's address, and `ca` (PEM) must have signed those of all servers.
    """

    server: str
    listen: str
    routes: tuple[str, ...]
    secret: str
    name: str = "lamplighter"
    tls: TlsFiles | None = None
    ca: Path | None = None


class ServerConfig(NamedTuple):
    """The addresses and folders of a broker, and its account files, which are the same on all servers of a cluster.

    `monitor_path`: the prefix of all paths of the monitor. The monitor asks for no password and answers web pages, so a
    secret path protects it.
    """

    listen: str
    monitor: str
    store_dir: str
    accounts: tuple[str, ...]
    store_bytes: int = STORE_LIMIT_BYTES
    tls: TlsFiles | None = None
    cluster: ClusterConfig | None = None
    monitor_path: str = ""


def render_config(config: ServerConfig) -> str:
    """Return nats.conf. With `tls` every client has to use TLS, the local ones too."""
    included = "".join(f"    include {json.dumps(file)}\n" for file in config.accounts)
    paths = config.tls and [json.dumps(str(path.resolve())) for path in config.tls]
    return (
        f"listen: {json.dumps(config.listen)}\n"
        f"http: {json.dumps(config.monitor)}\n"
        + (f"http_base_path: {json.dumps(config.monitor_path)}\n" if config.monitor_path else "")
        + "max_payload: 2MB\n"
        "# The default closes a connection after two seconds: a client on a busy machine may need longer to log in.\n"
        f"authorization {{ timeout: {LOGIN_TIMEOUT_S} }}\n"
        f"jetstream {{\n    store_dir: {json.dumps(config.store_dir)}\n"
        "    # The default syncs every two minutes: a power cut would take acknowledged jobs with it.\n"
        "    sync_interval: always\n"
        f"    max_file_store: {config.store_bytes}\n    max_memory_store: 64MB\n}}\n"
        f"accounts {{\n{included}}}\n"
        + (f"tls {{\n    cert_file: {paths[0]}\n    key_file: {paths[1]}\n    timeout: 5\n}}\n" if paths else "")
        + (_render_cluster(config.cluster) if config.cluster else "")
    )


def _render_cluster(cluster: ClusterConfig) -> str:
    routes = [f"nats://route:{cluster.secret}@{route}" for route in cluster.routes]
    return (
        f"server_name: {json.dumps(cluster.server)}\n"
        f"cluster {{\n    name: {json.dumps(cluster.name)}\n    listen: {json.dumps(cluster.listen)}\n"
        f"    authorization {{ user: route, password: {json.dumps(cluster.secret)}, timeout: 2 }}\n"
        f"    routes: {json.dumps(routes)}\n{_render_route_tls(cluster)}}}\n"
    )


def _render_route_tls(cluster: ClusterConfig) -> str:
    """Return the `tls` block of the routes: both ends show a certificate."""
    if cluster.tls is None or cluster.ca is None:
        return ""
    files = {"cert_file": cluster.tls.cert, "key_file": cluster.tls.key, "ca_file": cluster.ca}
    lines = "".join(f"        {name}: {json.dumps(str(path.resolve()))}\n" for name, path in files.items())
    return f"    tls {{\n{lines}        verify: true\n        timeout: 5\n    }}\n"
