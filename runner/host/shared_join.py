"""The exchange of a shared join token for one of this host alone, at the edge."""

import time
from collections.abc import Callable
from typing import NamedTuple

import httpx2
import msgspec

from runner.assets.port import EdgeUnavailable
from schemas.backoff import Backoff
from schemas.certificates import PIN_PREFIX, parse_pins, pinned_context
from schemas.enrollment import JoinRequest, JoinToken, SharedJoinToken
from schemas.environment import bypass_proxies_for_loopback
from schemas.problems import Problem

JOIN_PATH = "/v1/host-tokens/join"
JOIN_TIMEOUT_S = 60.0  # an edge adds a host within seconds, but a thousand pilots may join at the same time
RETRY_LIMIT_S = 120.0
RETRY_BACKOFF = Backoff(1.0, 15.0)


class JoinRefused(Exception):
    """The edge lets this host not join. The message says why and what to do."""


class RetryClock(NamedTuple):
    """The clock of the retries, in seconds, as a parameter for tests."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def request_enrollment(
    shared: SharedJoinToken,
    request: JoinRequest,
    clock: RetryClock = RetryClock(),  # noqa: B008 - a constant
) -> JoinToken:
    """Return the credentials of this host. Blocking; tries again for RETRY_LIMIT_S while the edge is away or busy.

    Also while another runner is online under the wanted id: it may be one that was killed a moment ago. Raises
    JoinRefused, EdgeUnavailable.
    """
    verify = pinned_context(parse_pins(PIN_PREFIX + shared.edge_pin)) if shared.edge_pin else True
    ends, tries = clock.monotonic() + RETRY_LIMIT_S, 0
    with httpx2.Client(
        base_url=shared.edge, timeout=JOIN_TIMEOUT_S, verify=verify, mounts=bypass_proxies_for_loopback(shared.edge)
    ) as client:
        while True:
            try:
                return _request_once(client, request)
            except (_Busy, EdgeUnavailable) as error:
                wait_s = RETRY_BACKOFF.delay_s(tries)
                if clock.monotonic() + wait_s > ends:
                    raise (JoinRefused(str(error)) if isinstance(error, _Busy) else error) from error
            clock.sleep(wait_s)
            tries += 1


class _Busy(Exception):
    """The wanted id is in use at this moment."""


def _request_once(client: httpx2.Client, request: JoinRequest) -> JoinToken:
    try:
        answer = client.post(JOIN_PATH, content=msgspec.json.encode(request))
    except httpx2.HTTPError as error:
        raise EdgeUnavailable(
            f"{client.base_url} does not answer ({error}): check address, port and firewall"
        ) from error
    try:
        if answer.is_success:
            return msgspec.json.decode(answer.content, type=JoinToken)
        problem = msgspec.json.decode(answer.content, type=Problem)
    except msgspec.DecodeError as error:
        raise EdgeUnavailable(
            f"{client.base_url} answers HTTP {answer.status_code}, not as an edge does: check the address"
        ) from error
    if answer.is_server_error and problem.code != "not_set_up":
        raise EdgeUnavailable(problem.detail)
    if problem.code == "conflict":
        raise _Busy(problem.detail)
    raise JoinRefused(problem.detail)
