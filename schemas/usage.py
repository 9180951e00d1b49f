"""Usage: the rows that USAGE stores for 400 days, and the report of `GET /v1/usage`."""

from msgspec import Struct, field

from schemas.ids import Token
from schemas.job import Moment
from schemas.status import Status


class JobUsage(Struct, frozen=True, kw_only=True):
    """One finished round of one job, from `revision` of its record.

    `run_s`: seconds of its last attempt. `gpus`: how many GPUs it had. `cost`: as computed by the host's runner, in the
    runner's own currency; None where it has no price. `started_at` None: it never ran.
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
    """One on interval of a host. `per_hour` is the price at that time; None: unknown."""

    host: Token
    since: Moment
    until: Moment
    on_reason: str = field(default="", name="why")
    per_hour: float | None = None
    currency: str = ""


UsageRow = JobUsage | PowerUsage


class Cost(Struct, frozen=True):
    """An amount of money in the unit of `currency`."""

    amount: float
    currency: str


class EndpointUsage(Struct, frozen=True, kw_only=True):
    """The usage of one endpoint's jobs. `hours_on` is their share of the hours in which their hosts were on."""

    endpoint: str
    jobs: int
    gpu_s: float
    energy_j: float
    cost: Cost
    hours_on: float


class UsageReport(Struct, frozen=True, kw_only=True):
    """The answer of `GET /v1/usage`. `edge.usage.cost_allocation` describes how time and money are allocated.

    `owner` null: all owners. `cost` is in the currency with the highest cost, `costs` has all of them. `hours_saved`:
    the hours in which declared hosts were off, compared with hosts that are always on.
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
