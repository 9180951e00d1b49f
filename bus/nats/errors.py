"""Map the errors of nats-py and of the JetStream API to the errors of `bus.interface`. Nothing else maps them."""

from collections.abc import Mapping
from types import MappingProxyType

from nats import errors as foreign

from bus.interface import BrokerDenied, BrokerFull, BrokerUnreachable, BusError, MessageTooLarge, RevisionConflict


class JetStreamNotFound(BusError):
    """The message or consumer does not exist. Never leaves this package."""


class StreamNotFound(BrokerUnreachable):
    """The stream does not exist yet: no edge has connected so far, or the cluster is electing a leader."""


class ConfigMismatch(BusError):
    """The stream or consumer exists with another configuration. Never leaves this package."""


class TooFewServers(BusError):
    """The cluster has fewer servers than the replicas of a stream. Never leaves this package."""


class WriteInProcess(BrokerUnreachable):
    """The same message was published before, and the servers of a cluster have not agreed on it yet."""


# err_code of the JetStream API (server/errors.json of nats-server 2.15).
API_ERRORS: Mapping[int, type[BusError]] = MappingProxyType(
    {
        10071: RevisionConflict,  # wrong last sequence: N
        10164: RevisionConflict,  # wrong last sequence
        10054: MessageTooLarge,  # message size exceeds maximum allowed
        10023: BrokerFull,  # insufficient resources
        10028: BrokerFull,  # insufficient memory resources available
        10047: BrokerFull,  # insufficient storage resources available
        10077: BrokerFull,  # maximum messages, bytes exceeded
        10037: JetStreamNotFound,  # no message found
        10043: JetStreamNotFound,  # sequence not found
        10014: JetStreamNotFound,  # consumer not found
        10059: StreamNotFound,  # stream not found
        10057: JetStreamNotFound,  # stream message delete failed: the sequence is gone
        10012: ConfigMismatch,  # consumer create failed: the update is not possible
        10058: ConfigMismatch,  # stream name already in use with a different configuration
        10005: TooFewServers,  # no suitable peers for placement
        10074: TooFewServers,  # replicas > 1 not supported in non-clustered mode
        10009: BrokerUnreachable,  # JetStream cluster can not handle request: between two leaders
        10118: BrokerUnreachable,  # stream is offline: too few of its servers are there
        10119: BrokerUnreachable,  # consumer is offline
        10158: WriteInProcess,  # duplicate message id is in process
        10163: BrokerUnreachable,  # expected last sequence per subject temporarily unavailable: between two leaders
        10167: BrokerUnreachable,  # too many requests
        10194: BrokerUnreachable,  # stream is offline, with the reason
        10195: BrokerUnreachable,  # consumer is offline, with the reason
        10008: BrokerUnreachable,  # JetStream system temporarily unavailable
        10039: BrokerUnreachable,  # JetStream not enabled for account: the broker is still starting
        10076: BrokerUnreachable,  # JetStream not enabled
    }
)

CLIENT_ERRORS: tuple[tuple[type[Exception], type[BusError]], ...] = (
    (foreign.MaxPayloadError, MessageTooLarge),
    (foreign.AuthorizationError, BrokerDenied),
    (foreign.InvalidUserCredentialsError, BrokerDenied),
    (foreign.BadSubjectError, BusError),
    (foreign.Error, BrokerUnreachable),
    (OSError, BrokerUnreachable),  # TimeoutError is one
    (RuntimeError, BrokerUnreachable),  # uvloop's, for a write to a connection that has just been lost
)
CLIENT_ERROR_TYPES = tuple(kind for kind, _ in CLIENT_ERRORS)


def from_api_error(subject: str, err_code: int, description: str) -> BusError:
    """Return the error for a JetStream API error that answers a request to `subject`."""
    return API_ERRORS.get(err_code, BusError)(f"{subject}: {description} (JetStream error {err_code})")


def from_client_error(error: Exception, doing: str) -> BusError:
    """Return the error for an exception of nats-py. `doing` says what was attempted, for the message."""
    # nats-py raises its base error with the broker's text, not an AuthorizationError, when a login is refused.
    if "authorization violation" in str(error).lower():
        return BrokerDenied(f"{doing}: the broker refuses this user or password: correct the broker settings")
    mapped = next(ours for theirs, ours in CLIENT_ERRORS if isinstance(error, theirs))
    return mapped(f"{doing}: {error or type(error).__name__}")
