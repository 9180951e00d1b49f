"""What was used: the rows that USAGE keeps for 400 days, and the report that `GET /v1/usage` makes of them."""

from msgspec import Struct, field

from schemas.ids import Token
from schemas.job import Moment
from schemas.status import Status


class JobUsage(Struct, frozen=True, kw_only=True):
    """One round of one job that has ended, as `revision` of its record tells it.

    `run_s`: seconds of its last attempt. `gpus`: how many cards that had. `cost`: what its host's runner reckoned, in
    that runner's own currency; None where it has no price. `started_at` None: it never ran.
    """

    owner: Token
    id: Token
    round: int
    revision: int
    endpoint: Token
    status: Status
    finished_at: Moment
    started_at: Moment | None = None
    host: Token | None = None
    run_s: float = 0.0
    gpus: int = 0
    energy_j: float | None = None
    cost: float | None = None


class PowerUsage(Struct, frozen=True, kw_only=True):
    """One span with power of one host. `per_hour` is the price as it was then; None: nobody knows it."""

    host: Token
    since: Moment
    until: Moment
    on_reason: str = field(default="", name="why")
    per_hour: float | None = None
    currency: str = ""


UsageRow = JobUsage | PowerUsage


class Cost(Struct, frozen=True):
    """Money."""

    amount: float
    currency: str


class EndpointUsage(Struct, frozen=True, kw_only=True):
    """What one endpoint's jobs used. `hours_on` is their part of their hosts' time with power."""

    endpoint: str
    jobs: int
    gpu_s: float
    energy_j: float
    cost: Cost
    hours_on: float


class UsageReport(Struct, frozen=True, kw_only=True):
    """The answer of `GET /v1/usage`. How time and money are shared out is said in `edge.usage.cost_allocation`.

    `owner` null: everybody's. `cost` is in the currency that most was spent in, `costs` has all of them.
    `hours_saved`: the hours in which declared hosts were dark, against hosts that are always on.
    """

    since: Moment = field(name="from")
    until: Moment = field(name="to")
    owner: str | None
    jobs: int
    gpu_s: float
    energy_j: float
    cost: Cost
    costs: tuple[Cost, ...]
    hours_on: float
    hours_saved: float
    by_endpoint: tuple[EndpointUsage, ...] = field(name="by")
