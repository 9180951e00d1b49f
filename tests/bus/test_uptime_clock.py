"""The gone rule's clock: what an observer could have slept through starts it anew."""

import pytest

from bus.health import ClockReading, UptimeClock


class Clocks:
    """Three clocks that go together unless a test says otherwise."""

    def __init__(self) -> None:
        self.now = ClockReading(100.0, 100.0, 1_000_000.0)

    def __call__(self) -> ClockReading:
        return self.now

    def go(self, running: float = 0.0, real: float | None = None, wall: float | None = None) -> None:
        now = self.now
        self.now = ClockReading(
            now.monotonic_s + running,
            now.boottime_s + (running if real is None else real),
            now.wall_s + (running if wall is None else wall),
        )


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def test_it_counts_from_up_and_not_while_down(clocks: Clocks):
    unbroken = UptimeClock(clocks)
    clocks.go(50)
    assert unbroken.uptime_s() == 0
    unbroken.start()
    clocks.go(30)
    assert unbroken.uptime_s() == 30
    unbroken.stop()
    clocks.go(5)
    assert unbroken.uptime_s() == 0
    unbroken.start()
    clocks.go(1)
    assert unbroken.uptime_s() == 1


@pytest.mark.parametrize(
    ("real", "wall"),
    [(3600, 3600), (3600, 1), (1, 3600), (1, -3600)],
    ids=["suspend", "suspend with the calendar set back", "clock set forward", "clock set back"],
)
def test_a_suspend_or_a_jump_starts_it_anew(clocks: Clocks, real: float, wall: float):
    unbroken = UptimeClock(clocks)
    unbroken.start()
    clocks.go(100)
    assert unbroken.uptime_s() == 100
    clocks.go(1, real, wall)
    assert unbroken.uptime_s() == 0
    clocks.go(7)
    assert unbroken.uptime_s() == 7


def test_a_clock_that_is_slewed_does_not(clocks: Clocks):
    unbroken = UptimeClock(clocks)
    unbroken.start()
    for _ in range(100):
        clocks.go(10, wall=10.005)
        assert unbroken.uptime_s() > 0
    assert unbroken.uptime_s() == pytest.approx(1000)
