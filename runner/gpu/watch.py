"""The watch: keeps an NVML child alive and its latest word at hand. The real `Gpus`.

A driver that hangs, an upgraded library, a missing driver or a dying child are states of the snapshot: nothing here
raises, and nothing of the runner waits for the driver.
"""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import anyio
import msgspec
import structlog
from anyio.abc import TaskGroup
from msgspec import Struct

from runner.gpu.board import Board
from runner.gpu.child import Child, Spawn
from runner.gpu.wire import ENDINGS, RENEW, Ending, Reading, decode
from schemas.gpu import LostGpu, Snapshot, WatchState

log = structlog.get_logger(__name__)

Fallen = tuple[WatchState, str]
"""Why a child is no longer listened to: a state and the driver's own words."""

WHY = {
    WatchState.NONE: "no NVIDIA card found: endpoints that need none, or for which it is optional, still run",
    WatchState.NO_DRIVER: "the NVIDIA driver is not loaded: run nvidia-smi on the host and mend what it says",
    WatchState.MISMATCH: "the NVIDIA driver was upgraded while loaded: reboot the host if this stays",
    WatchState.HUNG: "the NVIDIA driver does not answer: waiting for it; reboot the host if this stays",
    WatchState.FAILED: "the GPU watch died and is started again",
}
# The longest pause before a new child, seconds: how soon the state could change without anyone telling us.
LONGEST_PAUSE_S = {
    WatchState.OK: 0.5,
    WatchState.NONE: 300.0,
    WatchState.NO_DRIVER: 30.0,
    WatchState.MISMATCH: 30.0,
    WatchState.HUNG: 30.0,
    WatchState.FAILED: 30.0,
}
DOUBLINGS = 16  # of the first pause; every longest pause is reached before
REAP_S = 1.0  # at shutdown: how long a killed child may take before it is left to the kernel


class Timing(Struct, frozen=True):
    """Seconds. `first_s` is long: without persistence mode the driver wakes every card first."""

    first_s: float = 30.0
    silence_s: float = 5.0
    first_pause_s: float = 0.5


USUAL = Timing()


class Watch(Board):
    """`clock` gives Unix time; `random` a number in [0, 1) that spreads restarts."""

    def __init__(
        self,
        spawn: Spawn,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
        timing: Timing = USUAL,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        super().__init__()
        self._spawn, self._clock, self._random, self._sleep = spawn, clock, random, sleep
        self._timing = timing
        self._known: dict[str, LostGpu] = {}  # every card ever seen, as it will be reported once it is gone
        self._tasks: TaskGroup

    async def __aenter__(self) -> Self:
        before = self.snapshot()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._supervise)
        try:
            await self.changed(before)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(kind, error, trace)

    async def _supervise(self) -> None:
        failures = 0
        while True:
            before = self.snapshot().at
            state = await self._one_life()
            failures = failures + 1 if self.snapshot().at == before else 0
            pause = min(self._timing.first_pause_s * 2 ** min(failures, DOUBLINGS), LONGEST_PAUSE_S[state])
            await self._sleep(pause * (1 + self._random()) / 2)

    async def _one_life(self) -> WatchState:
        """Start a child, listen until it falls silent or ends, post the state that leaves."""
        try:
            child = await self._spawn()
        except OSError as error:
            return self._fall(WatchState.FAILED, str(error))
        try:
            state, words = await self._listen(child)
            child.kill()
            self._fall(state, words)
            # A child inside a hung driver ends when the driver lets it go, which is also when a new one could do
            # better; started earlier, it would only hang beside the first.
            await child.ended()
        except anyio.get_cancelled_exc_class():
            child.kill()
            with anyio.move_on_after(REAP_S, shield=True):
                await child.ended()
            raise
        return state

    async def _listen(self, child: Child) -> Fallen:
        """Take in what the child says, until it ends or says nothing for too long."""
        patience, words = self._timing.first_s, ""
        while True:
            try:
                with anyio.fail_after(patience):
                    message = decode(await child.line())
            except TimeoutError:
                return WatchState.HUNG, ""
            except (anyio.EndOfStream, anyio.IncompleteRead):
                return await self._ending(child), words
            except (msgspec.MsgspecError, anyio.DelimiterNotFound) as error:
                return WatchState.FAILED, f"unreadable: {error}"
            match message:
                case Reading():
                    patience = self._timing.silence_s
                    self._take(message)
                case Ending(why):
                    words = why
                case event:
                    self.tell(event)

    async def _ending(self, child: Child) -> WatchState:
        """What the exit code says; a child that cannot even exit hangs in the driver."""
        with anyio.move_on_after(self._timing.silence_s):
            code = await child.ended()
            return self.snapshot().state if code == RENEW else ENDINGS.get(code, WatchState.FAILED)
        return WatchState.HUNG

    def _take(self, reading: Reading) -> None:
        """A reading becomes the snapshot. A card that was seen before and is not listed now is lost."""
        uuids = {card.index: card.uuid for card in self._known.values()}
        told = [
            LostGpu(card.uuid or uuids.get(card.index, ""), card.why, card.index, card.name) for card in reading.lost
        ]
        for sample in reading.samples:
            why = "the driver no longer lists this card: reboot the host"
            self._known[sample.uuid] = LostGpu(sample.uuid, why, sample.index, sample.name)
        present = {sample.uuid for sample in reading.samples} | {card.uuid for card in told}
        gone = [card for card in self._known.values() if card.uuid not in present]
        self._note(WatchState.OK, "")
        self.post(Snapshot(WatchState.OK, self._clock(), reading.samples, (*told, *gone), reading.driver))

    def _fall(self, state: WatchState, words: str) -> WatchState:
        """The child no longer speaks: the last samples stay as history, unless it is certain that there is no card."""
        if state is WatchState.OK:  # it asked to be started anew: what it said last still holds
            return state
        why = f"{WHY[state]} ({words})" if words else WHY[state]
        now = msgspec.structs.replace(self.snapshot(), state=state, why=why)
        if state in {WatchState.NONE, WatchState.NO_DRIVER}:
            now = msgspec.structs.replace(now, samples=(), lost=tuple(self._known.values()))
        self._note(state, why)
        self.post(now)
        return state

    def _note(self, state: WatchState, why: str) -> None:
        if state is not self.snapshot().state:
            log.info("gpu_watch", state=state.value, why=why)
