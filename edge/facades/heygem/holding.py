"""Hold a submit while the broker is away: the vendor's clients give a video up at any answer but "accepted"."""

from collections.abc import Awaitable, Callable

from anyio import current_time, move_on_after

from edge.routes.given import AnyRequest
from edge.services.refusals import as_refused
from schemas.errors import Refused

HOLD_S = 6.0  # the broker restarts in 1 to 3 s; clients with a time limit of their own wait 10 s or longer
LOOK_EVERY_S = 0.2

PASSING = "unavailable"  # the code of every refusal that ends by itself


async def hold(request: AnyRequest, attempt: Callable[[], Awaitable[None]]) -> None:
    """Make `attempt` until it is not refused as `unavailable`, for HOLD_S at most or until the client disconnects.

    The body of `request` must have been read. No attempt is cut off, so the last one may end later: a broker that
    does not answer is given up after 5 s. Raises what the last attempt raised.
    """
    ends_at = current_time() + HOLD_S
    while True:
        try:
            return await attempt()
        except Exception as error:
            refused = error if isinstance(error, Refused) else as_refused(error)
            if refused is None or refused.code != PASSING:
                raise
            left_s = min(LOOK_EVERY_S, ends_at - current_time())
            if left_s <= 0 or await _disconnected(request, left_s):
                raise


async def _disconnected(request: AnyRequest, within_s: float) -> bool:
    """Wait `within_s`, or until the client disconnects; whether it did."""
    with move_on_after(within_s):
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return True
    return False
