"""How many streams of one kind a key, and all keys of one owner, may hold open at the same time at this edge."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.access import ApiKey
from schemas.errors import Refused

AGAIN_S = 10


class StreamLimits:
    """`what`: the streams' name in a refusal."""

    def __init__(self, what: str, per_key: int, per_owner: int) -> None:
        self._what, self._per_key, self._per_owner = what, per_key, per_owner
        self._of_key: Counter[str] = Counter()
        self._of_owner: Counter[str] = Counter()

    @contextmanager
    def opened(self, key: ApiKey) -> Iterator[None]:
        """Count a stream that `key` opened, inside the block. Raises Refused `too_many_connections`."""
        self._check(self._of_key[key.id], self._per_key, f"the key {key.id}")
        self._check(self._of_owner[key.owner], self._per_owner, key.owner)
        self._of_key[key.id] += 1
        self._of_owner[key.owner] += 1
        try:
            yield
        finally:
            _less(self._of_key, key.id)
            _less(self._of_owner, key.owner)

    def _check(self, count: int, most: int, whose: str) -> None:
        if count >= most:
            said = f"{most} {self._what} of {whose} are open here, which is the most: close some"
            raise Refused("too_many_connections", said, retry_after_s=AGAIN_S)


def _less(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
