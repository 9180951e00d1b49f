"""Use of a job: known readings in, figures computed by hand."""

import pytest

from runner.gpu.health import GpuMeter, MeterPrice, compute_usage, record_sample, start_meter
from runner.gpu.process_owner import OwnProcesses
from schemas.gpu import GpuProcess
from tests.support.gpu_samples import FOREIGN_PROCESS, make_sample

C = "c" * 64
MINE = OwnProcesses(containers=frozenset({C}))


def mine(used_mb: int | None) -> GpuProcess:
    return GpuProcess(7, used_mb, containers=(C,))


def start(energy_mj: int | None = 1_000_000) -> GpuMeter:
    return start_meter(["GPU-0"], MINE, [make_sample(0, energy_mj=energy_mj), make_sample(1)], now=100.0)


def test_a_job_on_one_gpu() -> None:
    meter = start()
    meter = record_sample(
        meter, [make_sample(0, energy_mj=1_050_000, utilization=80, processes=(mine(4000), mine(500)))], 101.0
    )
    meter = record_sample(
        meter, [make_sample(0, energy_mj=1_200_000, utilization=100, processes=(mine(3000), FOREIGN_PROCESS))], 102.0
    )
    usage = compute_usage(meter, 103.5, MeterPrice(per_hour=3.6))
    assert usage.run_s == 3.5
    assert usage.vram_peak_mb == 4500
    assert usage.gpu_utilization == 90.0
    assert usage.gpu_energy_j == 200.0
    assert usage.cost == pytest.approx(0.0035)


def test_a_job_on_two_gpus_sums_memory_and_energy() -> None:
    samples = [make_sample(0, energy_mj=1000), make_sample(1, energy_mj=9000)]
    meter = start_meter(["GPU-0", "GPU-1"], MINE, samples, now=0.0)
    later = [
        make_sample(0, energy_mj=3000, utilization=100, processes=(mine(10),)),
        make_sample(1, energy_mj=9500, utilization=50, processes=(mine(20),)),
    ]
    usage = compute_usage(record_sample(meter, later, 1.0), 1.0)
    assert (usage.gpu_energy_j, usage.vram_peak_mb, usage.gpu_utilization) == (2.5, 30, 75.0)


def test_energy_is_unknown_once_two_jobs_shared_the_gpu() -> None:
    meter = record_sample(start(), [make_sample(0, energy_mj=1_100_000)], 101.0, sharers=2)
    alone_again = record_sample(meter, [make_sample(0, energy_mj=1_200_000)], 102.0)
    assert compute_usage(alone_again, 103.0).gpu_energy_j is None


def test_the_hour_is_shared_by_the_jobs_that_shared_the_gpu() -> None:
    meter = record_sample(start(), [make_sample(0)], 110.0, sharers=2)
    usage = compute_usage(record_sample(meter, [make_sample(0)], 120.0), 120.0, MeterPrice(per_hour=3600.0))
    assert usage.run_s == 20.0
    assert usage.cost == 15.0


def test_energy_is_unknown_when_the_counter_went_back_or_is_missing() -> None:
    reset = record_sample(start(), [make_sample(0, energy_mj=5)], 101.0)
    assert compute_usage(record_sample(reset, [make_sample(0, energy_mj=2_000_000)], 102.0), 103.0).gpu_energy_j is None
    assert compute_usage(record_sample(start(None), [make_sample(0, energy_mj=5)], 101.0), 103.0).gpu_energy_j is None


def test_a_job_shorter_than_the_counter_has_no_energy() -> None:
    assert (
        compute_usage(record_sample(start(), [make_sample(0, energy_mj=1_000_000)], 100.2), 100.3).gpu_energy_j is None
    )


def test_nothing_is_made_up_for_a_gpu_that_reports_nothing() -> None:
    silent = make_sample(0, utilization=None, energy_mj=None, processes=(mine(None),))
    usage = compute_usage(record_sample(start(None), [silent], 101.0), 102.0)
    assert (usage.vram_peak_mb, usage.gpu_utilization, usage.gpu_energy_j, usage.cost) == (None, None, None, None)
    assert usage.run_s == 2.0


def test_a_job_without_gpus_is_billed_by_the_hour() -> None:
    usage = compute_usage(start_meter([], MINE, [make_sample(0)], 0.0), 36.0, MeterPrice(per_hour=1.0))
    assert (usage.run_s, usage.cost, usage.gpu_energy_j) == (36.0, pytest.approx(0.01), None)


@pytest.mark.parametrize(
    ("price", "energy_mj", "cost"),
    [
        (MeterPrice(), 4_600_000, None),
        (MeterPrice(per_kwh=1.0), 4_600_000, 0.001),
        (MeterPrice(per_kwh=1.0), None, None),
        (MeterPrice(per_hour=36.0, per_kwh=1.0), 4_600_000, 0.101),
        (MeterPrice(per_hour=36.0, per_kwh=1.0), None, None),
        (MeterPrice(per_hour=0.0), None, 0.0),
    ],
)
def test_rent_and_electricity(price: MeterPrice, energy_mj: int | None, cost: float | None) -> None:
    meter = record_sample(start(), [make_sample(0, energy_mj=energy_mj)], 110.0)
    assert compute_usage(meter, 110.0, price).cost == (cost if cost is None else pytest.approx(cost))
