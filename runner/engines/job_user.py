"""User that jobs of the process engine run as.

It is an unprivileged user where the runner is root, otherwise the runner's own.
"""

import grp
import os
import pwd

from msgspec import Struct

NOBODY_NAME = "nobody"


class NoSuchUser(Exception):
    """Jobs cannot run as the configured user; the message says what to do."""


class JobUser(Struct, frozen=True):
    """A user by number. `groups` are all its groups, because a GPU's device files may belong to one of them."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def current_user_name() -> str:
    """Return the name of the runner's own user, or its number if it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def resolve_job_user(configured: str | None) -> JobUser | None:
    """Return the user that a job becomes; None for the runner's own. Raises NoSuchUser.

    `configured` is the setting: "" is the runner's own user, None is the default.
    """
    is_root = os.geteuid() == 0
    if configured == "" or (configured is None and not is_root):
        return None
    name = NOBODY_NAME if configured is None else configured
    try:
        found = pwd.getpwnam(name)
    except KeyError as error:
        problem = f"there is no user {name} on this machine to run jobs as"
        raise NoSuchUser(f'{problem}: make it (useradd --system {name}), or set [process] user = ""') from error
    if found.pw_uid == os.geteuid():
        return None
    if not is_root:
        raise NoSuchUser(f'only root can run jobs as {name}: start the runner as root, or set [process] user = ""')
    groups = {found.pw_gid, *(group.gr_gid for group in grp.getgrall() if name in group.gr_mem)}
    return JobUser(name, found.pw_uid, found.pw_gid, tuple(sorted(groups)))
