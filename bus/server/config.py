"""The broker's accounts as text of nats.conf: one holds the streams, every user but the edge's lives in one of its own.

Why. The broker checks the subject that a user publishes to, never the subject that it names for the answer. In one
account an answer whose bytes the user chooses (a record of its own, an empty status) is a write to any subject: a key,
another host's presence, a call of the JetStream API that deletes a stream. Between accounts every answer is mapped to
the account of whoever asked. There it reaches the asker's own subscriptions, and what the account imports. An account
imports exactly what its user may publish, so an answer can do no more than the user can.

How. The account `HOME` exports what any user may call or hear, and each other account imports its user's part of it.
Every account has a JetStream API of its own, which answers `$JS.API.…` first ("JetStream not enabled for account",
10039). Such calls are imported under another name, and the account maps the usual name to that one.

An account that a reload adds cannot call anything until the reload after it (nats-server 2.15.1): see
`bus.server.host_accounts`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from bus.nats.users import EDGE, EDGE_ACCOUNT, READER, READER_API_PREFIX, BrokerUser, broker_users, runner_user

# These are not part of an account's own API: a consumer or a stream answers them itself.
_ANSWERED_BY_STREAM = ("$JS.API.CONSUMER.MSG.NEXT.", "$JS.API.DIRECT.GET.")
_ANSWERED_BY_EDGE = ("$JS.API.CONSUMER.CREATE.", "$JS.API.CONSUMER.DELETE.")
_MULTI_REPLY_PREFIX = "$JS.API.CONSUMER.MSG.NEXT."
_BCRYPT = re.compile(r"\$2[aby]\$\d\d\$")


class AccountImport(NamedTuple):
    """What a user asks as `subject` is called `name` in its account, and is answered in HOME at `served`."""

    subject: str
    name: str
    target: str

    @property
    def exported(self) -> str:
        """As HOME exports it."""
        several = ", response_type: stream" if self.target.startswith(_MULTI_REPLY_PREFIX) else ""
        return f"{{ service: {json.dumps(self.target)}{several} }}"

    @property
    def imported(self) -> str:
        """As the user's account imports it."""
        to = "" if self.name == self.target else f", to: {json.dumps(self.name)}"
        return f"{{ service: {{ account: {EDGE_ACCOUNT}, subject: {json.dumps(self.target)} }}{to} }}"


def import_for_subject(subject: str) -> AccountImport:
    """How a subject that a user may publish to gets to HOME."""
    if subject.startswith(_ANSWERED_BY_EDGE):
        served = READER_API_PREFIX + subject.removeprefix("$JS.API.")
        return AccountImport(subject, served, served)
    if subject.startswith("$JS.API.") and not subject.startswith(_ANSWERED_BY_STREAM):
        return AccountImport(subject, subject.replace("$JS.API.", "home.", 1), subject)
    return AccountImport(subject, subject, subject)


def _foreign_subscriptions(user: BrokerUser) -> tuple[str, ...]:
    return tuple(subject for subject in user.subscribe if not subject.startswith(user.inbox))


def render_accounts(passwords: Mapping[str, str], hosts: Iterable[str] = ()) -> str:
    """HOME and the accounts of the users with a password in `passwords` (by user name); the others do not exist.

    `hosts`: hosts whose runner may be among them, beside the runner of any host.
    """
    known = {user.name: user for user in broker_users(tuple(hosts))}
    apart = ((known[name], password) for name, password in passwords.items() if name != EDGE.name)
    return _render_edge_account(passwords[EDGE.name]) + "".join(
        render_account(user, password) for user, password in apart
    )


def _render_secret(password: str) -> str:
    """A value that starts with `$` names a variable of the broker's environment and stays unquoted, but for a hash."""
    return password if password.startswith("$") and not _BCRYPT.match(password) else json.dumps(password)


def _render_edge_account(password: str) -> str:
    """Exports are for every account of this broker: there is none that its configuration does not name."""
    anybody = (runner_user(), READER)
    calls = {import_for_subject(subject): None for user in anybody for subject in user.publish}
    heard = {subject: None for user in anybody for subject in _foreign_subscriptions(user)}
    return (
        f"{EDGE_ACCOUNT} {{\n"
        "    jetstream: enabled\n"
        f"    users: [{{ user: {json.dumps(EDGE.name)}, password: {_render_secret(password)} }}]\n"
        + _render_list(
            "exports", (*(one.exported for one in calls), *(f"{{ stream: {json.dumps(one)} }}" for one in heard))
        )
        + "}\n"
    )


def render_account(user: BrokerUser, password: str) -> str:
    """The account of a user other than the edge. `password`: itself, its bcrypt hash, or `$` and a variable's name."""
    calls = [import_for_subject(subject) for subject in user.publish]
    mapped = {one.subject: one.name for one in calls if one.name != one.subject}
    heard = (
        f"{{ stream: {{ account: {EDGE_ACCOUNT}, subject: {json.dumps(subject)} }} }}"
        for subject in _foreign_subscriptions(user)
    )
    return (
        f"{json.dumps(user.account)} {{\n"
        f"    users: [{{ user: {json.dumps(user.name)}, password: {_render_secret(password)}, permissions: {{\n"
        + _render_list("publish", map(json.dumps, (*user.publish, *mapped.values())))
        + _render_list("subscribe", map(json.dumps, user.subscribe))
        + "    }}]\n"
        + _render_list("imports", (*(one.imported for one in calls), *heard))
        + _render_mappings(mapped)
        + "}\n"
    )


def _render_list(name: str, items: Iterable[str]) -> str:
    return f"    {name}: [\n" + "".join(f"        {item}\n" for item in items) + "    ]\n"


def _render_mappings(mapped: Mapping[str, str]) -> str:
    lines = "".join(f"        {json.dumps(usual)}: {json.dumps(name)}\n" for usual, name in mapped.items())
    return f"    mappings: {{\n{lines}    }}\n" if mapped else ""


STORE_LIMIT_BYTES = 20 * 1024**3


class TlsFiles(NamedTuple):
    """Files in PEM."""

    cert: Path
    key: Path


class ClusterConfig(NamedTuple):
    """One server's part in a cluster. `server`: its name, no other's. `secret`: what all servers know.

    `listen`, and each of `routes`, its own too: address:port between the servers, where nothing is encrypted.
    """

    server: str
    listen: str
    routes: tuple[str, ...]
    secret: str
    name: str = "lamplighter"


class ServerConfig(NamedTuple):
    """Where the broker listens and stores, and the files of its accounts, the same on all servers of a cluster.

    `monitor_path`: what every path of the monitor begins with. The monitor asks for no password and answers web pages,
    so a path that nobody can guess stands for one.
    """

    listen: str
    monitor: str
    store_dir: str
    accounts: tuple[str, ...]
    store_bytes: int = STORE_LIMIT_BYTES
    tls: TlsFiles | None = None
    cluster: ClusterConfig | None = None
    monitor_path: str = ""


def render_config(place: ServerConfig) -> str:
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
        + (_render_cluster(place.cluster) if place.cluster else "")
    )


def _render_cluster(part: ClusterConfig) -> str:
    routes = [f"nats://route:{part.secret}@{route}" for route in part.routes]
    return (
        f"server_name: {json.dumps(part.server)}\n"
        f"cluster {{\n    name: {json.dumps(part.name)}\n    listen: {json.dumps(part.listen)}\n"
        f"    authorization {{ user: route, password: {json.dumps(part.secret)}, timeout: 2 }}\n"
        f"    routes: {json.dumps(routes)}\n}}\n"
    )
