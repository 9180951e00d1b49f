"""The cards as a host's presence shows them. Pure."""

from collections.abc import Mapping

from schemas.gpu import Fitness, Judgement, Snapshot
from schemas.host import GpuReport


def reports(snapshot: Snapshot, judgements: Mapping[str, Judgement]) -> tuple[GpuReport, ...]:
    """Every card that answers or once did, in the order of their indices."""
    answering = [
        (
            sample.index,
            GpuReport(
                uuid=sample.uuid,
                name=sample.name,
                memory_total_mb=sample.memory_total_mb,
                memory_free_mb=sample.memory_free_mb,
                temperature_c=sample.temperature_c,
                utilization=sample.utilization,
                power_w=sample.power_w,
                **_verdict(judgements.get(sample.uuid)),
            ),
        )
        for sample in snapshot.samples
    ]
    lost = [
        (card.index or 0, GpuReport(card.uuid, card.name, fitness=Fitness.LOST.value, reason=card.why))
        for card in snapshot.lost
    ]
    return tuple(report for _, report in sorted(answering + lost, key=lambda placed: placed[0]))


def _verdict(judgement: Judgement | None) -> dict[str, str]:
    if judgement is None:
        return {"fitness": Fitness.UNHEALTHY.value, "reason": "not judged yet"}
    return {"fitness": judgement.fitness.value} | ({"reason": judgement.why} if judgement.why else {})
