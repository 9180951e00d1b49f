"""The user that jobs of the process engine run as: nobody where the runner is root, else the runner's own."""

import grp
import os
import pwd

from msgspec import Struct

NOBODY_NAME = "nobody"


class NoSuchUser(Exception):
    """Jobs cannot run as the user that was asked for: the message says what to do."""


class JobUser(Struct, frozen=True):
    """A user by number. `groups`: all that it is in, for a GPU's device files may belong to one of them."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def current_user_name() -> str:
    """The runner's own user, by name where it has one."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def resolve_job_user(asked: str | None) -> JobUser | None:
    """The user to become for a job, None for the runner's own. `asked` "": the runner's own; None: it was not asked.

    Raises NoSuchUser.
    """
    root = os.geteuid() == 0
    if asked == "" or (asked is None and not root):
        return None
    name = NOBODY_NAME if asked is None else asked
    try:
        found = pwd.getpwnam(name)
    except KeyError as error:
        why = f"there is no user {name} on this machine to run jobs as"
        raise NoSuchUser(f'{why}: make it (useradd --system {name}), or set [process] user = ""') from error
    if found.pw_uid == os.geteuid():
        return None
    if not root:
        raise NoSuchUser(f'only root can run jobs as {name}: start the runner as root, or set [process] user = ""')
    groups = {found.pw_gid, *(group.gr_gid for group in grp.getgrall() if name in group.gr_mem)}
    return JobUser(name, found.pw_uid, found.pw_gid, tuple(sorted(groups)))
