"""The section `[notify]`: targets of notifications, and which conditions go to each."""

from typing import Annotated

from msgspec import Meta, Struct, field

from schemas.conditions import Condition
from schemas.ids import Token
from schemas.settings_schema import SECRET
from schemas.texts import Language


class NotifyTarget(Struct, frozen=True):
    """A target and the conditions that are sent to it: `[notify.targets.NAME]`."""

    url: Annotated[str, SECRET, Meta(min_length=1)]
    """Where messages go, as an address of Apprise: `mailtos://user:password@example.com?to=ops@example.com`,
    `dingtalk://…`, `wecombot://…`, `lark://…`, `slack://…`, `jsons://…` for a webhook.
    """
    conditions: tuple[Condition, ...] | None = None
    """The conditions that are sent to this target. Unset: all."""
    failed_jobs: bool = False
    """Whether each job that fails is sent to this target."""
    endpoints: tuple[str, ...] = ()
    """Only failed jobs of these endpoints. Empty: of any."""
    codes: tuple[str, ...] = ()
    """Only failed jobs with these codes, such as `out_of_memory`. Empty: with any."""


class NotifySettings(Struct, frozen=True):
    """The `[notify]` section: messages to people when something is wrong. Needs `lamplighter-server[notify]`."""

    targets: dict[Token, NotifyTarget] = field(default_factory=dict)
    """The targets, by name."""
    language: Language = Language.EN
    """The language of the messages."""
    interval_s: Annotated[float, Meta(ge=1)] = 60.0
    """The least time between two messages to one target. What happens meanwhile is one message."""
    check_every_s: Annotated[float, Meta(ge=0.05)] = 15.0
    """Interval between two looks at the conditions."""
