"""The broker's users and exactly what each may do, as data; and the nats.conf around them.

A runner binds to what is there, it never creates. Each user but the edge's has an account of its own
(`bus.server.config`), so that the answer to a call is not a way to write. What a runner's password still allows,
beside running jobs:

- read the record of any job, and write any record: end a job, or give it a result (the claim in the record is a fence
  against accidents, not against a hostile runner)
- acknowledge or postpone any message of JOBS, so that its job waits until the edge offers it again
- say progress and log of any job

It cannot read or write a key, a webhook's secret, another host's presence, offer, orders or messages, or a stream.
The reader's password allows to read what is said of any owner's job, and to make and delete readers' consumers.
"""

from typing import NamedTuple

from bus.nats.topology import HOSTS, POWER, TOMBSTONES

ANY_HOST = "*"
EDGE_ACCOUNT = "LAMPLIGHTER"  # the account of the edge, which holds the streams


class BrokerUser(NamedTuple):
    """A broker user, the only one in its account. Every inbox of its connection starts with `inbox`."""

    name: str
    account: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    inbox: str


def inbox_prefix(name: str) -> str:
    """The inbox prefix of a user."""
    return f"_INBOX_{name}"


def _user(name: str, account: str, publish: tuple[str, ...], subscribe: tuple[str, ...]) -> BrokerUser:
    return BrokerUser(name, account, publish, (f"{inbox_prefix(name)}.>", *subscribe), inbox_prefix(name))


EDGE = BrokerUser("edge", EDGE_ACCOUNT, (">",), (">",), inbox_prefix("edge"))

# Where an edge makes and deletes consumers for readers (`bus.nats.reader_proxy`): a consumer of their own making could
# deliver to any subject of the edge's account.
READER_API_PREFIX = "readers."

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


def runner_user_name(host: str) -> str:
    """The user of one host's runner; of any host's for `*`."""
    return "runner" if host == ANY_HOST else f"runner-{host}"


def runner_user(host: str = ANY_HOST) -> BrokerUser:
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
    return _user(runner_user_name(host), account, publish, (f"ctl.{host}", "wake.*"))


def account_list_marker(name: str) -> BrokerUser:
    """A user without a job: a login as this user proves which list of hosts the broker has read.

    `bus.server.host_accounts` uses it.
    """
    return _user(f"roster-{name}", f"ROSTER_{name}", (f"$JS.API.DIRECT.GET.{TOMBSTONES.stream}.roster",), ())


def broker_users(hosts: tuple[str, ...] = ()) -> tuple[BrokerUser, ...]:
    """Everybody: the edge, the runner of any host, one runner for each of `hosts`, the outside reader."""
    return (EDGE, runner_user(), *(runner_user(host) for host in hosts), READER)


GLOBAL_ACCOUNT = "$G"  # the account of everybody at a broker without accounts
