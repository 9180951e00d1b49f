"""What `stream` has given of a job already: RunPod's clients ask again until nothing comes, so nothing comes twice."""

from collections import OrderedDict
from typing import Any

import msgspec
from msgspec import Struct

from edge.facades.runpod.translation import output_of
from schemas.feed import Place, ProgressNote
from schemas.job import JobKey
from schemas.view import JobView
from schemas.words import Status

REMEMBERED = 10_000  # jobs; one that is forgotten, or another edge's, gives its last piece once more


class _Given(Struct):
    """`done`: the round whose output was given."""

    place: Place | None = None
    done: int = 0


class Pieces:
    """One edge's memory of it: per job the progress last given, and whether the output was."""

    def __init__(self) -> None:
        self._given: OrderedDict[JobKey, _Given] = OrderedDict()

    def take(self, job: JobView, note: ProgressNote | None) -> list[dict[str, Any]]:
        """What is new since the last call: progress said meanwhile (the latest of it), and the output at the end."""
        given = self._of(JobKey(job.owner, job.id))
        pieces = []
        if note is not None and note.place != given.place and note.place.round == job.round:
            given.place = note.place
            told = {"fraction": note.fraction, "stage": note.stage, "done": note.done, "total": note.total}
            pieces.append({"output": told})
        if job.status is Status.SUCCEEDED and job.output is not None and given.done != job.round:
            given.done = job.round
            pieces.append({"output": msgspec.to_builtins(output_of(job.output))})
        return pieces

    def _of(self, key: JobKey) -> _Given:
        given = self._given.setdefault(key, _Given())
        self._given.move_to_end(key)
        if len(self._given) > REMEMBERED:
            self._given.popitem(last=False)
        return given
