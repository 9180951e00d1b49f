"""What an earlier life left: containers in any state, and folders without one. Nothing of it is started again.

At the start of a life all of it is looked at; later, one job at a time, when its message comes and no execution knows.
"""

import re
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path

import anyio.to_thread
from msgspec.structs import replace

from bus.interface import QueueMessage, RevisionConflict, VersionedRecord
from runner.context import HostContext, RunnerContext
from runner.endpoints import LocalEndpoint
from runner.engines.port import NO_JOB, FoundContainer
from runner.execution.container_run import JobAssignment
from runner.execution.execution import ExecutionRegistry
from runner.execution.fence import record_event
from runner.execution.warm_container import WARM_PREFIX, WarmContainer, read_claim, send_start
from schemas.endpoint import Endpoint, Resources
from schemas.events import Adopted, AttemptReleased, JobEvent, JobRecord, RecordUnreadable, UnknownEvent
from schemas.ids import JobKey, is_token
from schemas.job import Job
from schemas.retry_policy import FAILURES, outcome_after_failure
from schemas.status import ACTIVE_STATUSES, FINAL_STATUSES

HOST_LOST = "host_lost"
_NUMBER = re.compile("[0-9]{1,9}", re.ASCII)


class RecoveryAction(StrEnum):
    """What becomes of a container."""

    FOLLOW = "follow"  # running: follow it; exited: judge and collect
    RELEASE = "free"  # it never ran: the job goes back to the queue, at no cost
    REMOVE = "remove"  # its attempt is over
    LEAVE = "leave"  # an execution has it, or it is nothing we know: touch nothing


def choose_recovery_action(found: FoundContainer, recorded: JobRecord | None, host: str) -> RecoveryAction:
    """What to do with a container, by the record of its job (None: there is none)."""
    mine = found.identity
    if mine.job == NO_JOB or recorded is None or _was_ended_by_runner(recorded.event):
        return RecoveryAction.REMOVE
    job = recorded.job
    if (mine.round, mine.attempt) != (job.round, job.attempt):
        return RecoveryAction.REMOVE if (mine.round, mine.attempt) < (job.round, job.attempt) else RecoveryAction.LEAVE
    if job.status in FINAL_STATUSES or job.claim is None or job.claim.host != host:
        return RecoveryAction.REMOVE
    return RecoveryAction.RELEASE if found.state == "created" else RecoveryAction.FOLLOW


def _was_ended_by_runner(event: JobEvent | UnknownEvent) -> bool:
    """Whether the attempt was ended by the life that ran it, killed before it cleared away: it counts once.

    What was released because nobody heard of its host is another thing: its container is still worth something.
    """
    return isinstance(event, AttemptReleased) and event.code != HOST_LOST


def host_lost_event(life: RunnerContext, job: Job) -> JobEvent:
    """The event for an attempt whose host or container is gone."""
    why = "the host of this attempt is gone, or its container is"
    return outcome_after_failure(job, HOST_LOST, why, FAILURES[HOST_LOST], at=life.now(), jitter=life.jitter())


class ContainerRecovery:
    """Takes over for the life it is given."""

    def __init__(self, life: RunnerContext, means: HostContext, roster: ExecutionRegistry) -> None:
        self._context = life
        self._host = means
        self.executions = roster

    async def recover_all(self) -> None:
        """All containers of this installation and host, then the folders that none of them uses."""
        there = await self._find_containers()
        for found in there:
            await self._context.retry_while_unavailable("adopt", partial(self._recover, found, None))
        named = {found.identity.folder for found in there}
        for folder in await anyio.to_thread.run_sync(container_folders, self._context.jobs_dir):
            if folder.name not in named:
                await self._context.retry_while_unavailable("tidy", partial(self._clear_orphan_folder, folder))

    async def recover_job(self, entry: VersionedRecord, delivery: QueueMessage | None) -> None:
        """A job that this host claimed and no execution knows: take its container, or give the job back.

        Raises Conflict in the second case: the record asks for something else now.
        """
        job = entry.record.job
        for found in await self._find_containers_of(job.key):
            await self._recover(found, delivery)
        if job.round not in self.executions.rounds(job.key):
            await self._release_attempt(job.key, job.round, job.attempt)
            raise RevisionConflict("the attempt was given back")

    async def recover_poisoned_slots(self) -> None:
        """The slots that a dead task left: take its container over, or find that there is none any more."""
        for key in self._host.slots.poisoned:
            for found in await self._find_containers_of(key):
                await self._recover(found, None)
            if key in self._host.slots.poisoned and not await self._find_containers_of(key):
                self._host.slots.clear_poison(key)

    async def _find_containers_of(self, key: JobKey) -> list[FoundContainer]:
        return [one for one in await self._find_containers() if (one.identity.owner, one.identity.job) == key]

    async def _find_containers(self) -> list[FoundContainer]:
        ask = partial(self._context.engine.find, self._context.installation, self._context.host)
        found = await self._context.retry_engine_call("find", ask)
        return await anyio.to_thread.run_sync(resolve_claimed, self._context.jobs_dir, found)

    async def _recover(self, found: FoundContainer, delivery: QueueMessage | None) -> None:
        """Until the record and the container agree; a conflict means that the record has moved on."""
        mine = found.identity
        key = JobKey(mine.owner, mine.job)
        if mine.round in self.executions.rounds(key):
            return
        while True:
            try:
                entry = await self._context.bus.job_store.read(key) if mine.job != NO_JOB else None
            except RecordUnreadable as error:
                self._context.log.warning("record unreadable", owner=mine.owner, job_id=mine.job, why=str(error))
                return  # the container is kept: it may be the only proof of what happened
            verdict = choose_recovery_action(found, entry.record if entry else None, self._context.host)
            self._context.log.info("found", owner=mine.owner, job_id=mine.job, state=found.state, fate=verdict)
            try:
                await self._apply_action(verdict, found, entry, delivery)
            except RevisionConflict:
                continue
            return

    async def _apply_action(
        self,
        verdict: RecoveryAction,
        found: FoundContainer,
        entry: VersionedRecord | None,
        delivery: QueueMessage | None,
    ) -> None:
        if verdict is RecoveryAction.FOLLOW and entry is not None:
            await self._resume(found, entry, delivery)
        if verdict is RecoveryAction.RELEASE and entry is not None and entry.record.job.status in ACTIVE_STATUSES:
            await record_event(self._context, entry, host_lost_event(self._context, entry.record.job))
        if verdict in {RecoveryAction.RELEASE, RecoveryAction.REMOVE}:
            await self._context.retry_engine_call("remove", partial(self._context.engine.remove, found.handle))
            await self._context.delete_folder(self._context.jobs_dir / found.identity.folder)

    async def _resume(self, found: FoundContainer, entry: VersionedRecord, delivery: QueueMessage | None) -> None:
        job = entry.record.job
        gpus = job.claim.gpu_uuids if job.claim else ()
        taken = await record_event(self._context, entry, Adopted(self._context.claim(job.attempt, gpus), job.round))
        kind = self._host.endpoints.get(job.endpoint) or _placeholder_endpoint(job.endpoint)
        holding = self._host.gpu_allocator.allocate(gpus, kind.config)
        spare = None
        if found.identity.spare:
            spare = WarmContainer(found.identity.folder, kind, holding, found.handle)
            # The life before may have been killed between its claim and the line; a second one starts nothing twice.
            await anyio.to_thread.run_sync(send_start, self._context.jobs_dir / spare.folder / "job")
        ticket = JobAssignment(taken, kind, holding, found.handle, spare)
        self.executions.launch(ticket, self._host.slots.take_for_recovered(job.key), delivery)

    async def _clear_orphan_folder(self, folder: Path) -> None:
        place = await anyio.to_thread.run_sync(parse_container_folder, folder)
        with suppress(RecordUnreadable):  # then nothing is left that could be given back
            if place is not None:
                await self._release_attempt(*place)
        await self._context.delete_folder(folder)

    async def _release_attempt(self, key: JobKey, round_: int, attempt: int) -> None:
        """Release the attempt if the record still says that this host is at it."""
        while (entry := await self._context.bus.job_store.read(key)) is not None:
            job = entry.record.job
            ours = job.claim is not None and job.claim.host == self._context.host
            if not ours or job.status not in ACTIVE_STATUSES or (job.round, job.attempt) != (round_, attempt):
                return
            try:
                await record_event(self._context, entry, host_lost_event(self._context, job))
            except RevisionConflict:
                continue


def _placeholder_endpoint(endpoint: str) -> LocalEndpoint:
    """A kind that this life was not given: it cannot tell how much disk such a job may use."""
    return LocalEndpoint(Endpoint(name=endpoint, image="", resources=Resources(disk_mb=0)), Path())


def resolve_claimed(jobs: Path, there: list[FoundContainer]) -> list[FoundContainer]:
    """The same, but what was started ahead as the container of the job that it was given, if it was."""
    return [_resolve_claimed(jobs, found) for found in there]


def _resolve_claimed(jobs: Path, found: FoundContainer) -> FoundContainer:
    if found.identity.job != NO_JOB or not found.identity.spare:
        return found
    return replace(found, identity=read_claim(jobs / found.identity.spare) or found.identity)


def container_folders(jobs: Path) -> list[Path]:
    """The folders that attempts, and containers started ahead of one, work or worked in."""
    return sorted(path for path in jobs.iterdir() if path.name.startswith(WARM_PREFIX) or path.name.count(".") == 3)


def parse_container_folder(folder: Path) -> tuple[JobKey, int, int] | None:
    """The job, round and attempt that worked in `folder`; None: nobody's did, or the name is none of ours."""
    if not folder.name.startswith(WARM_PREFIX):
        owner, job, *numbers = folder.name.split(".")
        if not all(map(is_token, (owner, job))) or not all(map(_NUMBER.fullmatch, numbers)):
            return None
        return JobKey(owner, job), int(numbers[0]), int(numbers[1])
    mine = read_claim(folder)
    return (JobKey(mine.owner, mine.job), mine.round, mine.attempt) if mine else None
