"""Work on several pieces at once, results in order.

On the CPU every piece is computed by one thread and the cores share out the pieces. Torch's own way, all cores on every
small operation, waits at each of them for the slowest core, and was up to ten times slower on a busy machine.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


class WorkerPool:
    """Threads that outlive the calls. `count`: 1 where a card does the work."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane")

    def ordered(self, work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
        """work(piece) for each piece; at most one piece more than there are lanes is taken ahead of the results."""
        ahead: deque[Future[Result]] = deque()
        try:
            for piece in pieces:
                ahead.append(self._pool.submit(_without_gradients, work, piece))
                if len(ahead) > self._count:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _without_gradients(work: Callable[[Piece], Result], piece: Piece) -> Result:
    with torch.inference_mode():  # holds for one thread only
        return work(piece)
