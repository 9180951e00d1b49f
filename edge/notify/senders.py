"""Build the senders of the settings. The library is imported only if there are targets."""

import importlib
from collections.abc import Mapping

from edge.notify.port import NotificationSender, TargetInvalid
from edge.notify.settings import NotifySettings


def build_senders(settings: NotifySettings) -> Mapping[str, NotificationSender]:
    """Return a sender for each target. Raises TargetInvalid."""
    if not settings.targets:
        return {}
    try:
        module = importlib.import_module(f"{__package__}.apprise_sender")
    except ModuleNotFoundError as error:
        raise TargetInvalid(
            f"[notify] needs {error.name}: pip install 'lamplighter-server[notify]', or remove its targets"
        ) from error
    return {name: module.AppriseSender(name, target.url) for name, target in settings.targets.items()}
