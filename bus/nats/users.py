"""The users of the broker and their rights, as data.

A runner uses streams and consumers, it never creates any. Each user but the edge's has its own account
(`bus.server.config`), so that the reply to a call cannot be used to write. Beside running jobs, the password of a
runner still allows:

- to read and write the record of any job: to end a job, or to give it a result (the claim in the record is a fence
  against accidents, not against a hostile runner)
- to ack or nak any message of JOBS, so that its job waits until the edge publishes it again
- to publish progress and log output of any job

It cannot read or write a key, a webhook's secret, a stream, or another host's heartbeat, capabilities, power record or
nudges. The reader's password allows to read the feed of all jobs, and to create and delete consumers of readers.
"""

from typing import NamedTuple

from bus.nats.topology import HOSTS, POWER, TOMBSTONES

ANY_HOST = "*"
EDGE_ACCOUNT = "LAMPLIGHTER"  # the account of the edge, which holds the streams


class BrokerUser(NamedTuple):
    """A user of the broker, the only one in its account. All inboxes of its connection start with `inbox`."""

    name: str
    account: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    inbox: str


def inbox_prefix(name: str) -> str:
    """Return the inbox prefix of a user."""
    return f"_INBOX_{name}"


def _user(name: str, account: str, publish: tuple[str, ...], subscribe: tuple[str, ...]) -> BrokerUser:
    return BrokerUser(name, account, publish, (f"{inbox_prefix(name)}.>", *subscribe), inbox_prefix(name))


EDGE = BrokerUser("edge", EDGE_ACCOUNT, (">",), (">",), inbox_prefix("edge"))

# Under this prefix an edge creates and deletes consumers for readers (`bus.nats.reader_proxy`). A consumer created by a
# reader could deliver to any subject of the edge's account.
READER_API_PREFIX = "readers."

# These rights cover what client libraries do on their own, such as unnamed consumers and CONSUMER.INFO.
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


def runner_user_name(host: str) -> str:
    """Return the user name of a host's runner; for `*`, that of the runner of any host."""
    return "runner" if host == ANY_HOST else f"runner-{host}"


def runner_user(host: str = ANY_HOST) -> BrokerUser:
    """Return the user of the runner of `host`. It writes that host's heartbeat and capabilities, and no other's."""
    publish = (
        "$JS.API.STREAM.INFO.KV_STATE",
        "$JS.API.STREAM.MSG.GET.KV_STATE",
        "$JS.API.CONSUMER.MSG.NEXT.JOBS.*",
        "$JS.ACK.JOBS.>",
        "$KV.STATE.>",
        *(f"$JS.API.DIRECT.GET.{bucket.stream}.>" for bucket in (HOSTS, TOMBSTONES)),
        f"$JS.API.DIRECT.GET.{POWER.stream}.$KV.{POWER.name}.{host}",  # its own power record, no other host's
        *(f"$JS.API.STREAM.INFO.{bucket.stream}" for bucket in (HOSTS, POWER, TOMBSTONES)),
        "feed.*.*.progress",
        "feed.*.*.log",
        f"$KV.HOSTS.{host}",
        f"$KV.OFFERS.{host}",
    )
    account = "RUNNERS" if host == ANY_HOST else f"HOST_{host}"
    return _user(runner_user_name(host), account, publish, (f"ctl.{host}", "wake.*"))


def account_list_marker(name: str) -> BrokerUser:
    """Return a user without a job: a login as this user proves which list of hosts the broker has read.

    `bus.server.host_accounts` uses it.
    """
    return _user(f"roster-{name}", f"ROSTER_{name}", (f"$JS.API.DIRECT.GET.{TOMBSTONES.stream}.roster",), ())


def broker_users(hosts: tuple[str, ...] = ()) -> tuple[BrokerUser, ...]:
    """Return all users: the edge, the runner of any host, one runner for each of `hosts`, the reader."""
    return (EDGE, runner_user(), *(runner_user(host) for host in hosts), READER)


GLOBAL_ACCOUNT = "$G"  # the account of all users at a broker without accounts
