"""The targets of notifications: the section `[notify]`, the port to a target, and how its senders are built."""

from collections.abc import Mapping
from typing import Annotated, Protocol

from msgspec import Meta, Struct, field

from schemas.installation import Condition
from schemas.job import Token
from schemas.settings_schema import SECRET
from schemas.texts import Language
from schemas.version import import_extra


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
    """Only failed jobs of these endpoints. Empty: of all endpoints."""
    codes: tuple[str, ...] = ()
    """Only failed jobs with these codes, such as `out_of_memory`. Empty: with any code."""


class NotifySettings(Struct, frozen=True):
    """The `[notify]` section: messages to people when something is wrong. Needs `lamplighter-server[notify]`."""

    targets: dict[Token, NotifyTarget] = field(default_factory=dict)
    """The targets, by name."""
    language: Language = Language.EN
    """The language of the messages."""
    interval_s: Annotated[float, Meta(ge=1)] = 60.0
    """The shortest time between two messages to one target. Events in between are put into one message."""
    check_every_s: Annotated[float, Meta(ge=0.05)] = 15.0
    """Interval between two checks of the conditions."""


class TargetInvalid(Exception):
    """The settings of a target cannot be used. The message says what to change, and holds no secret."""


class NotificationFailed(Exception):
    """A message was not sent. The message says why, and holds no secret."""


class NotificationSender(Protocol):
    """One target of notifications, such as a chat or a mailbox."""

    async def send(self, title: str, body: str) -> None:
        """Send one message. Raises NotificationFailed."""
        ...


def build_senders(settings: NotifySettings) -> Mapping[str, NotificationSender]:
    """Return a sender for each target. Raises TargetInvalid. The library is imported only if there are targets."""
    if not settings.targets:
        return {}
    module = import_extra(f"{__package__}.apprise_sender", "notify", "[notify]", TargetInvalid)
    return {name: module.AppriseSender(name, target.url) for name, target in settings.targets.items()}
