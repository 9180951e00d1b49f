"""The broker's accounts as text of nats.conf: one holds the streams, every user but the edge's lives in one of its own.

Why. The broker checks the subject that a user publishes to, never the subject that it names for the answer. In one
account an answer whose bytes the user chooses (a record of its own, an empty status) is a write to any subject: a key,
another host's presence, a call of the JetStream API that deletes a stream. Between accounts every answer is mapped to
the account of whoever asked. There it reaches the asker's own subscriptions, and what the account imports. An account
imports exactly what its user may publish, so an answer can do no more than the user can.

How. The account `HOME` exports what any user may call or hear, and each other account imports its user's part of it.
Every account has a JetStream API of its own, which answers `$JS.API.…` first ("JetStream not enabled for account",
10039). Such calls are imported under another name, and the account maps the usual name to that one.

An account that a reload adds cannot call anything until the reload after it (nats-server 2.15.1): see `bus.roster`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bus.users import EDGE, HOME, READER, READER_DESK, User, runner, users

GLOBAL = "$G"  # the account of everybody at a broker without accounts
# These are not part of an account's own API: a consumer or a stream answers them itself.
_ANSWERED_AT_HOME = ("$JS.API.CONSUMER.MSG.NEXT.", "$JS.API.DIRECT.GET.")
_ASKED_OF_EDGES = ("$JS.API.CONSUMER.CREATE.", "$JS.API.CONSUMER.DELETE.")
_SEVERAL_ANSWERS = "$JS.API.CONSUMER.MSG.NEXT."
_BCRYPT = re.compile(r"\$2[aby]\$\d\d\$")


class Call(NamedTuple):
    """What a user asks as `subject` is called `name` in its account, and is answered in HOME at `served`."""

    subject: str
    name: str
    served: str

    @property
    def exported(self) -> str:
        """As HOME exports it."""
        several = ", response_type: stream" if self.served.startswith(_SEVERAL_ANSWERS) else ""
        return f"{{ service: {json.dumps(self.served)}{several} }}"

    @property
    def imported(self) -> str:
        """As the user's account imports it."""
        to = "" if self.name == self.served else f", to: {json.dumps(self.name)}"
        return f"{{ service: {{ account: {HOME}, subject: {json.dumps(self.served)} }}{to} }}"


def call(subject: str) -> Call:
    """How a subject that a user may publish to gets to HOME."""
    if subject.startswith(_ASKED_OF_EDGES):
        served = READER_DESK + subject.removeprefix("$JS.API.")
        return Call(subject, served, served)
    if subject.startswith("$JS.API.") and not subject.startswith(_ANSWERED_AT_HOME):
        return Call(subject, subject.replace("$JS.API.", "home.", 1), subject)
    return Call(subject, subject, subject)


def _heard(user: User) -> tuple[str, ...]:
    return tuple(subject for subject in user.subscribe if not subject.startswith(user.inbox))


def accounts(passwords: Mapping[str, str], hosts: Iterable[str] = ()) -> str:
    """HOME and the accounts of the users with a password in `passwords` (by user name); the others do not exist.

    `hosts`: hosts whose runner may be among them, beside the runner of any host.
    """
    known = {user.name: user for user in users(tuple(hosts))}
    apart = ((known[name], password) for name, password in passwords.items() if name != EDGE.name)
    return _home(passwords[EDGE.name]) + "".join(account(user, password) for user, password in apart)


def _secret(password: str) -> str:
    """A value that starts with `$` names a variable of the broker's environment and stays unquoted, but for a hash."""
    return password if password.startswith("$") and not _BCRYPT.match(password) else json.dumps(password)


def _home(password: str) -> str:
    """Exports are for every account of this broker: there is none that its configuration does not name."""
    anybody = (runner(), READER)
    calls = {call(subject): None for user in anybody for subject in user.publish}
    heard = {subject: None for user in anybody for subject in _heard(user)}
    return (
        f"{HOME} {{\n"
        "    jetstream: enabled\n"
        f"    users: [{{ user: {json.dumps(EDGE.name)}, password: {_secret(password)} }}]\n"
        + _list("exports", (*(one.exported for one in calls), *(f"{{ stream: {json.dumps(one)} }}" for one in heard)))
        + "}\n"
    )


def account(user: User, password: str) -> str:
    """The account of a user other than the edge. `password`: itself, its bcrypt hash, or `$` and a variable's name."""
    calls = [call(subject) for subject in user.publish]
    mapped = {one.subject: one.name for one in calls if one.name != one.subject}
    heard = (f"{{ stream: {{ account: {HOME}, subject: {json.dumps(subject)} }} }}" for subject in _heard(user))
    return (
        f"{json.dumps(user.account)} {{\n"
        f"    users: [{{ user: {json.dumps(user.name)}, password: {_secret(password)}, permissions: {{\n"
        + _list("publish", map(json.dumps, (*user.publish, *mapped.values())))
        + _list("subscribe", map(json.dumps, user.subscribe))
        + "    }}]\n"
        + _list("imports", (*(one.imported for one in calls), *heard))
        + _mappings(mapped)
        + "}\n"
    )


def _list(name: str, items: Iterable[str]) -> str:
    return f"    {name}: [\n" + "".join(f"        {item}\n" for item in items) + "    ]\n"


def _mappings(mapped: Mapping[str, str]) -> str:
    lines = "".join(f"        {json.dumps(usual)}: {json.dumps(name)}\n" for usual, name in mapped.items())
    return f"    mappings: {{\n{lines}    }}\n" if mapped else ""
