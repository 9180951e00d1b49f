"""Work on several pieces at once, and return the results in order.

On the CPU each piece is computed by one thread, and the cores work on different pieces. Torch uses all cores for every
small operation and waits each time for the slowest core. That was up to ten times slower on a busy machine.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


class WorkerPool:
    """Threads that are kept between calls. `count`: 1 if a GPU does the work."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane")

    def ordered(self, work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
        """Yield work(piece) for each piece, in order. At most one piece more than there are threads is taken ahead."""
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
    with torch.inference_mode():  # applies to the current thread only
        return work(piece)
