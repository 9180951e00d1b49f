"""Foreign errors, mapped here and nowhere else: what nats-py raises and the broker answers, in the port's words."""

from collections.abc import Mapping
from types import MappingProxyType

from nats import errors as foreign

from bus.port import BusError, Conflict, Denied, StoreFull, TooLarge, Unreachable


class Missing(BusError):
    """There is no such message. Never leaves this package."""


class NoStream(Unreachable):
    """There is no such stream yet: no edge has been there, or the cluster is between two leaders."""


class Different(BusError):
    """The stream or consumer is there with another configuration. Never leaves this package."""


class FewServers(BusError):
    """The cluster has fewer servers than a stream is to be kept on. Never leaves this package."""


class InProcess(Unreachable):
    """The same message was said before, and the servers of a cluster have not agreed on it yet."""


# err_code of the JetStream API (server/errors.json of nats-server 2.15).
API: Mapping[int, type[BusError]] = MappingProxyType(
    {
        10071: Conflict,  # wrong last sequence: N
        10164: Conflict,  # wrong last sequence
        10054: TooLarge,  # message size exceeds maximum allowed
        10023: StoreFull,  # insufficient resources
        10028: StoreFull,  # insufficient memory resources available
        10047: StoreFull,  # insufficient storage resources available
        10077: StoreFull,  # maximum messages, bytes exceeded
        10037: Missing,  # no message found
        10043: Missing,  # sequence not found
        10014: Missing,  # consumer not found
        10059: NoStream,  # stream not found
        10057: Missing,  # stream message delete failed: the sequence is gone
        10012: Different,  # consumer create failed: what it is now cannot become what it shall be
        10058: Different,  # stream name already in use with a different configuration
        10005: FewServers,  # no suitable peers for placement
        10074: FewServers,  # replicas > 1 not supported in non-clustered mode
        10009: Unreachable,  # JetStream cluster can not handle request: between two leaders
        10118: Unreachable,  # stream is offline: too few of its servers are there
        10119: Unreachable,  # consumer is offline
        10158: InProcess,  # duplicate message id is in process
        10163: Unreachable,  # expected last sequence per subject temporarily unavailable: between two leaders
        10167: Unreachable,  # too many requests
        10194: Unreachable,  # stream is offline, with the reason
        10195: Unreachable,  # consumer is offline, with the reason
        10008: Unreachable,  # JetStream system temporarily unavailable
        10039: Unreachable,  # JetStream not enabled for account: the broker is still starting
        10076: Unreachable,  # JetStream not enabled
    }
)

CLIENT: tuple[tuple[type[Exception], type[BusError]], ...] = (
    (foreign.MaxPayloadError, TooLarge),
    (foreign.AuthorizationError, Denied),
    (foreign.InvalidUserCredentialsError, Denied),
    (foreign.BadSubjectError, BusError),
    (foreign.Error, Unreachable),
    (OSError, Unreachable),  # TimeoutError is one
    (RuntimeError, Unreachable),  # uvloop's, for a write to a connection that has just been lost
)
FOREIGN = tuple(kind for kind, _ in CLIENT)


def answered(subject: str, err_code: int, description: str) -> BusError:
    """The error that the broker answered to what was sent to `subject`."""
    return API.get(err_code, BusError)(f"{subject}: {description} (JetStream error {err_code})")


def raised(error: Exception, doing: str) -> BusError:
    """The error that nats-py raised while `doing`."""
    # While connecting a refused login is no AuthorizationError but the broker's own words.
    if "authorization violation" in str(error).lower():
        return Denied(f"{doing}: the broker refuses this user or password: correct the broker settings")
    kind = next(ours for theirs, ours in CLIENT if isinstance(error, theirs))
    return kind(f"{doing}: {error or type(error).__name__}")
