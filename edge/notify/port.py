"""The port to a target of notifications, and its errors."""

from typing import Protocol


class TargetInvalid(Exception):
    """The settings of a target cannot be used. The message says what to change, and holds no secret."""


class NotificationFailed(Exception):
    """A message was not sent. The message says why, and holds no secret."""


class NotificationSender(Protocol):
    """One target of notifications, such as a chat or a mailbox."""

    async def send(self, title: str, body: str) -> None:
        """Send one message. Raises NotificationFailed."""
        ...
