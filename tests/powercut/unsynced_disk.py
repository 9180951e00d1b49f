"""A disk that forgets what was not synced: the tree as programs see it, and the tree that a power cut leaves.

There are two kinds of file system, by what they promise of *names* (files made, renamed, removed):

- `JOURNAL`, as ext4 and XFS: changes of names reach the disk in their order, all of them with any fsync that follows.
- `FOLDER`, as POSIX words it, for the worst disk: the names in a folder are only as safe as its own last fsync.

Under both, bytes of a file are safe after its own fsync. Nothing else ever is: a real disk may keep more.
"""

import errno
import stat
from collections.abc import Callable
from enum import Enum

from msgspec import Struct, field

ROOT = 1


class NameSync(Enum):
    """What makes a changed name safe."""

    JOURNAL = "journal"
    FOLDER = "folder"


class DiskNode(Struct):
    """A file or a folder as programs see it. `dirty`: ranges (start, end) that were written since its last fsync."""

    mode: int
    changed_ns: int
    data: bytearray = field(default_factory=bytearray)
    children: dict[str, int] = field(default_factory=dict)
    dirty: list[tuple[int, int]] = field(default_factory=list)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


class SyncedNode(Struct):
    """What the disk has of a node."""

    mode: int
    data: bytearray = field(default_factory=bytearray)
    children: dict[str, int] = field(default_factory=dict)


class UnsyncedDisk:
    """Both trees. Every method raises OSError as the system call of its name would, and EIO after `cut`."""

    def __init__(self, names: NameSync, clock_ns: Callable[[], int]) -> None:
        self._names = names
        self._clock_ns = clock_ns
        self._last = ROOT
        self._live = {ROOT: DiskNode(stat.S_IFDIR | 0o755, clock_ns())}
        self._kept = {ROOT: SyncedNode(stat.S_IFDIR | 0o755)}
        self._touched: set[int] = set()  # folders whose names changed since their last sync
        self._off = False
        self.syncs = 0

    def node(self, number: int) -> DiskNode:
        """Return the node of an open file or a found path."""
        if self._off:
            raise OSError(errno.EIO, "the power is off")
        return self._live[number]

    def find(self, path: str) -> int:
        """Return the number of the node at an absolute path."""
        number = ROOT
        for name in _names(path):
            children = self.node(number).children
            if name not in children:
                raise OSError(errno.ENOENT, path)
            number = children[name]
        return number

    def _parent(self, path: str) -> tuple[int, str]:
        *above, name = _names(path)
        return self.find("/" + "/".join(above)), name

    def make(self, path: str, mode: int) -> int:
        """Create a file or folder; return its number."""
        parent, name = self._parent(path)
        if name in self.node(parent).children:
            raise OSError(errno.EEXIST, path)
        self._last += 1
        self._live[self._last] = DiskNode(mode, self._clock_ns())
        self._name(parent, name, self._last)
        return self._last

    def link(self, path: str, number: int) -> None:
        """Create a second name for a file."""
        parent, name = self._parent(path)
        if name in self.node(parent).children:
            raise OSError(errno.EEXIST, path)
        self._name(parent, name, number)

    def remove(self, path: str) -> None:
        """Remove a name; an open file stays readable by its number."""
        parent, name = self._parent(path)
        gone = self.node(parent).children.get(name)
        if gone is None:
            raise OSError(errno.ENOENT, path)
        if self.node(gone).children:
            raise OSError(errno.ENOTEMPTY, path)
        self._name(parent, name, None)

    def rename(self, old: str, new: str) -> None:
        """Rename, replacing another name if there is one."""
        source, was = self._parent(old)
        number = self.find(old)
        target, name = self._parent(new)
        over = self.node(target).children.get(name)
        if over is not None and self.node(over).children:
            raise OSError(errno.ENOTEMPTY, new)
        self._name(source, was, None)
        self._name(target, name, number)

    def _name(self, folder: int, name: str, number: int | None) -> None:
        children = self.node(folder).children
        if number is None:
            del children[name]
        else:
            children[name] = number
        self._touched.add(folder)

    def write(self, number: int, data: bytes, offset: int) -> None:
        """Write bytes into a file; fill with zeros before them where it was shorter."""
        node = self.node(number)
        start = min(offset, len(node.data))
        node.data.extend(b"\0" * (offset - start))
        node.data[offset : offset + len(data)] = data
        node.dirty.append((start, offset + len(data)))
        node.changed_ns = self._clock_ns()

    def truncate(self, number: int, length: int) -> None:
        """Cut a file, or lengthen it with zeros."""
        node = self.node(number)
        had = len(node.data)
        del node.data[length:]
        node.data.extend(b"\0" * (length - had))
        node.dirty.append((min(had, length), length))
        node.changed_ns = self._clock_ns()

    def sync_file(self, number: int) -> None:
        """Sync a file: its bytes, and under a journal all names so far."""
        node, kept = self.node(number), self._keep(number)
        del kept.data[len(node.data) :]
        for start, written in node.dirty:
            end = min(written, len(node.data))
            kept.data.extend(b"\0" * (end - len(kept.data)))
            kept.data[start:end] = node.data[start:end]
        node.dirty.clear()
        self.syncs += 1
        if self._names is NameSync.JOURNAL:
            self._settle(set(self._touched))

    def sync_folder(self, number: int) -> None:
        """Sync a folder: its names, and under a journal all others so far."""
        self.node(number)
        self.syncs += 1
        self._settle(set(self._touched) if self._names is NameSync.JOURNAL else {number})

    def sync_all(self) -> None:
        """Sync everything, as sync(2)."""
        for number, node in self._live.items():
            if node.dirty:
                self.sync_file(number)
        self._settle(set(self._touched))

    def _settle(self, folders: set[int]) -> None:
        for folder in folders:
            children = self._live[folder].children
            self._keep(folder).children = dict(children)
            for child in children.values():
                self._keep(child)
        self._touched -= folders

    def _keep(self, number: int) -> SyncedNode:
        """Return what the disk has of a node; a file that was never synced has at most a name, and no bytes."""
        return self._kept.setdefault(number, SyncedNode(self._live[number].mode))

    def cut(self) -> dict[str, bytes | None]:
        """Cut the power; return what is left: path to bytes, None for a folder. Every later call raises EIO."""
        self._off = True
        left: dict[str, bytes | None] = {}
        self._walk(ROOT, "", left)
        return left

    def _walk(self, folder: int, path: str, left: dict[str, bytes | None]) -> None:
        for name, number in self._kept[folder].children.items():
            kept = self._kept[number]
            here = f"{path}/{name}"
            left[here] = None if stat.S_ISDIR(kept.mode) else bytes(kept.data)
            self._walk(number, here, left)


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]
