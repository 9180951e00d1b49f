"""The event loop of the tests: uvloop, as in production, and every wait in it ends.

pytest-timeout alone cannot end an asynchronous wait: its signal leaves the loop, but the task stays where it waits, and
the teardown of the fixtures then waits for that task, without end. So a wait ends by the first of these that works:

1. In the loop, at 90 % of the test's timeout, a TimeoutError is raised where the test or the fixture waits.
2. At the timeout, pytest-timeout's signal ends what blocks the thread.
3. At 150 %, the process prints its stacks and ends: something swallowed the cancellation. pytest-xdist then reports
   the test as the one that crashed its worker, and goes on with another worker.

Set-up and body have the timeout together; the teardown has it once more.
"""

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, TypeVar

import pytest
import pytest_timeout

IN_LOOP, END_PROCESS = 0.9, 1.5  # of the test's timeout

T = TypeVar("T")
LOOP = ("asyncio", {"use_uvloop": True})


class _Clock:
    """When the running phase of the running test has to be over; `settings` are pytest-timeout's for that test."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.settings: Any = None
        self._item: Any = None
        self._last_resort: threading.Timer | None = None

    def start(self, item: pytest.Item, settings: Any) -> None:
        self.stop()
        self._item, self.settings = item, settings
        self.deadline = time.monotonic() + settings.timeout * IN_LOOP
        self._last_resort = threading.Timer(
            settings.timeout * END_PROCESS, pytest_timeout.timeout_timer, (item, settings)
        )
        self._last_resort.daemon = True
        self._last_resort.start()

    def stop(self) -> None:
        if self._last_resort is not None:
            self._last_resort.cancel()
            self._last_resort.join()
        self.deadline = self._last_resort = None

    def hold_signal(self) -> None:
        """Keep pytest-timeout from interrupting the making of the report; the last resort stays."""
        self._item.cancel_timeout()

    def left_s(self) -> float | None:
        """None where nothing is bounded: with --timeout=0."""
        return None if self.deadline is None else self.deadline - time.monotonic()


clock = _Clock()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """What the commands `edge`, `runner` and `relay` run in."""
    return LOOP


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    clock.start(item, settings)


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer() -> None:
    clock.stop()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[Any]:
    clock.settings = None
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    try:
        return (yield)
    except BaseException:
        item.ihook.pytest_timeout_cancel_timer(item=item)  # or it would interrupt the making of the report
        raise


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    try:
        return (yield)
    finally:
        item.ihook.pytest_timeout_cancel_timer(item=item)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    if clock.settings is not None:
        item.ihook.pytest_timeout_set_timer(item=item, settings=clock.settings)
    try:
        return (yield)
    finally:
        item.ihook.pytest_timeout_cancel_timer(item=item)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[Any]:
    test = pyfuncitem.obj
    drawn = getattr(test, "hypothesis", None)
    if drawn is not None and iscoroutinefunction(drawn.inner_test):
        drawn.inner_test = _bounded(drawn.inner_test)
    elif iscoroutinefunction(test):
        pyfuncitem.obj = _bounded(test)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = test


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[Any]:
    func: Any = fixturedef.func
    fixture: Any = fixturedef
    if isasyncgenfunction(func):
        fixture.func = _bounded_generator(func)
    elif iscoroutinefunction(func):
        fixture.func = _bounded(func)
    try:
        return (yield)
    finally:
        fixture.func = func


async def _in_time(work: Awaitable[T]) -> T:
    """asyncio's timeout, not anyio's: it passes shields, and a fixture may leave a cancel scope open behind it."""
    try:
        async with asyncio.timeout(clock.left_s()) as bound:
            return await work
    except Exception as error:
        if not bound.expired():
            raise
        clock.hold_signal()
        limit = clock.settings.timeout
        raise TimeoutError(f"it still waited at {IN_LOOP:.0%} of its timeout of {limit:g} s, here") from error


def _bounded(func: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    @functools.wraps(func)
    async def bounded(*args: Any, **kwargs: Any) -> T:
        return await _in_time(func(*args, **kwargs))

    return bounded


def _bounded_generator(func: Callable[..., Any]) -> Callable[..., AsyncIterator[Any]]:
    @functools.wraps(func)
    async def bounded(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        fixture = func(*args, **kwargs)
        yield await _in_time(anext(fixture))
        try:
            await _in_time(anext(fixture))
        except StopAsyncIteration:
            return
        raise RuntimeError(f"the fixture {func.__name__} yields twice")

    return bounded
