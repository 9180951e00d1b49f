"""Recovery of what a previous runner process left: containers in any state, and folders without one.

Nothing found is started again. `recover_all` runs at the start of a runner process. Later, `recover_job` handles one
job when its message arrives and no execution knows it.
"""

import re
from contextlib import suppress
from enum import Enum, StrEnum, auto
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
from msgspec.structs import replace

from bus.interface import QueueMessage, RevisionConflict, VersionedRecord
from runner.context import HostContext, RunnerContext
from runner.endpoints import LocalEndpoint
from runner.engines.port import NO_JOB, FoundContainer
from runner.execution.container_run import JobAssignment
from runner.execution.durable_state import record_event, transition_record
from runner.execution.execution import ExecutionRegistry
from runner.execution.warm_container import WARM_PREFIX, WarmContainer, job_folders, read_warm_assignment, send_start
from schemas.endpoint import Endpoint, Resources
from schemas.events import (
    Adopted,
    AttemptReleased,
    JobEvent,
    JobRecord,
    RecordUnreadable,
    UnknownEvent,
)
from schemas.job import (
    ACTIVE_STATUSES,
    FINAL_STATUSES,
    Job,
    JobKey,
    is_token,
)
from schemas.lifecycle import FAILURES, HOST_LOST_CODE, outcome_after_failure

_NUMBER = re.compile("[0-9]{1,9}", re.ASCII)


class StepOutcome(Enum):
    """Result of a step for a message: it was answered or its job launched, or the record has changed."""

    DONE = auto()
    READ_AGAIN = auto()


class RecoveryAction(StrEnum):
    """Action for a container that was found."""

    FOLLOW = "follow"  # it runs: follow it; it exited: classify the exit and collect the outputs
    RELEASE = "release"  # it never ran: the job goes back to the queue, at no cost
    REMOVE = "remove"  # its attempt is over
    LEAVE = "leave"  # it is of a later attempt than the record that was read: change nothing


def choose_recovery_action(found: FoundContainer, record: JobRecord | None, host: str) -> RecoveryAction:
    """Return the action for a container. `record` is the record of its job; None if it does not exist."""
    identity = found.identity
    if identity.job == NO_JOB or record is None or _was_ended_by_runner(record.event):
        return RecoveryAction.REMOVE
    job = record.job
    if (identity.round, identity.attempt) != (job.round, job.attempt):
        return (
            RecoveryAction.REMOVE
            if (identity.round, identity.attempt) < (job.round, job.attempt)
            else RecoveryAction.LEAVE
        )
    if job.status in FINAL_STATUSES or job.claim is None or job.claim.host != host:
        return RecoveryAction.REMOVE
    return RecoveryAction.RELEASE if found.state == "created" else RecoveryAction.FOLLOW


def _was_ended_by_runner(event: JobEvent | UnknownEvent) -> bool:
    """Return whether the runner process that ran the attempt ended it, and was killed before it cleaned up.

    Such a container is removed, so that its attempt is not charged twice. If the attempt was released because its host
    was silent, the container can still be followed.
    """
    return isinstance(event, AttemptReleased) and event.code != HOST_LOST_CODE


def host_lost_event(context: RunnerContext, job: Job) -> JobEvent:
    """Return the event for an attempt whose host or container is gone."""
    message = "the host or the container of this attempt is gone"
    return outcome_after_failure(
        job, HOST_LOST_CODE, message, FAILURES[HOST_LOST_CODE], at=context.now(), jitter=context.jitter()
    )


class ContainerRecovery:
    """Recovers containers for the runner process of this context."""

    def __init__(self, context: RunnerContext, host: HostContext, executions: ExecutionRegistry) -> None:
        self._context = context
        self._host = host
        self._executions = executions

    async def recover_all(self) -> None:
        """Recover all containers of this installation and host, then the folders that none of them uses."""
        containers = await self._find_containers()
        for found in containers:
            await self._context.retry_while_unavailable("adopt", partial(self._recover, found, None))
        used_folders = {found.identity.folder for found in containers}
        for folder in await anyio.to_thread.run_sync(container_folders, self._context.jobs_dir):
            if folder.name not in used_folders:
                await self._context.retry_while_unavailable("tidy", partial(self._clear_orphan_folder, folder))
        await anyio.to_thread.run_sync(self._remove_orphan_secrets)

    def _remove_orphan_secrets(self) -> None:
        """Remove secrets without a container's folder, which is made before them and removed after them."""
        try:
            self._context.secrets.remove_orphans(container_folders(self._context.jobs_dir))
        except OSError as error:
            self._context.log.warning("secrets_removal_failed", error=str(error))

    async def recover_job(self, entry: VersionedRecord, delivery: QueueMessage | None) -> StepOutcome:
        """Recover a job that this host claimed and that no execution knows: follow its container.

        Without a container the attempt is released, and the record asks for another step.
        """
        job = entry.record.job
        for found in await self._find_containers_of(job.key):
            await self._recover(found, delivery)
        if job.round in self._executions.rounds(job.key):
            return StepOutcome.DONE
        await self._release_attempt(job.key, job.round, job.attempt)
        return StepOutcome.READ_AGAIN

    async def recover_poisoned_slots(self) -> None:
        """Recover each container that keeps a slot poisoned; free the slot if the container does not exist."""
        for key in self._host.slots.poisoned:
            for found in await self._find_containers_of(key):
                await self._recover(found, None)
            if key in self._host.slots.poisoned and not await self._find_containers_of(key):
                self._host.slots.clear_poison(key)

    async def _find_containers_of(self, key: JobKey) -> list[FoundContainer]:
        return [
            container
            for container in await self._find_containers()
            if (container.identity.owner, container.identity.job) == key
        ]

    async def _find_containers(self) -> list[FoundContainer]:
        call = partial(self._context.engine.find, self._context.installation, self._context.host)
        found = await self._context.retry_engine_call("find", call)
        return await anyio.to_thread.run_sync(resolve_claimed, self._context.jobs_dir, found)

    async def _recover(self, found: FoundContainer, delivery: QueueMessage | None) -> None:
        """Apply the recovery action, again after a conflict: then the record has changed."""
        identity = found.identity
        key = JobKey(identity.owner, identity.job)
        if identity.round in self._executions.rounds(key):
            return
        while True:
            try:
                entry = await self._context.bus.job_store.read(key) if identity.job != NO_JOB else None
            except RecordUnreadable as error:
                self._context.log.warning(
                    "record_read_failed", owner=identity.owner, job_id=identity.job, error=str(error)
                )
                return  # keep the container: it may be the only proof of how the job ended
            action = choose_recovery_action(found, entry.record if entry else None, self._context.host)
            self._context.log.info(
                "container_found", owner=identity.owner, job_id=identity.job, state=found.state, action=action
            )
            try:
                await self._apply_action(action, found, entry, delivery)
            except RevisionConflict:
                continue
            return

    async def _apply_action(
        self,
        action: RecoveryAction,
        found: FoundContainer,
        entry: VersionedRecord | None,
        delivery: QueueMessage | None,
    ) -> None:
        if action is RecoveryAction.FOLLOW and entry is not None:
            await self._resume(found, entry, delivery)
        if action is RecoveryAction.RELEASE and entry is not None and entry.record.job.status in ACTIVE_STATUSES:
            await record_event(self._context, entry, host_lost_event(self._context, entry.record.job))
        if action in {RecoveryAction.RELEASE, RecoveryAction.REMOVE}:
            await self._context.retry_engine_call("remove", partial(self._context.engine.remove, found.handle))
            await self._context.delete_folder(self._context.jobs_dir / found.identity.folder)

    async def _resume(self, found: FoundContainer, entry: VersionedRecord, delivery: QueueMessage | None) -> None:
        job, assigned = entry.record.job, None
        folder = self._context.jobs_dir / found.identity.folder
        if found.identity.warm_dir:
            assigned = await anyio.to_thread.run_sync(read_warm_assignment, folder)
            if assigned is not None and assigned.identity != found.identity:
                return  # the next job has this container already: its output is not that of `job`
        gpus, isolation = (job.claim.gpu_uuids, job.claim.isolation) if job.claim else ((), None)
        claim_of_ours = self._context.claim(job.attempt, gpus, isolation)
        adopted = await record_event(self._context, entry, Adopted(claim_of_ours, job.round))
        endpoint = self._host.endpoints.get(job.endpoint) or _placeholder_endpoint(job.endpoint)
        allocation = self._host.gpu_allocator.allocate(gpus, endpoint.config)
        warm = None
        if found.identity.warm_dir:
            number, since = (assigned.number, assigned.since) if assigned else (0, None)
            warm = WarmContainer(folder.name, endpoint, allocation, found.handle, number=number, since=since)
            # The previous process may have been killed after it wrote the assignment and before it sent the start line.
            # A second line starts nothing twice.
            await anyio.to_thread.run_sync(send_start, job_folders(folder, number).root, number)
        assignment = JobAssignment(adopted.record.job, endpoint, allocation, found.handle, warm, adopted)
        self._executions.launch(assignment, self._host.slots.take_for_recovered(job.key), delivery)

    async def _clear_orphan_folder(self, folder: Path) -> None:
        attempt = await anyio.to_thread.run_sync(parse_container_folder, folder)
        with suppress(RecordUnreadable):  # an unreadable record cannot be released
            if attempt is not None:
                await self._release_attempt(*attempt)
        await self._context.delete_folder(folder)

    async def _release_attempt(self, key: JobKey, round_: int, attempt: int) -> None:
        """Release the attempt if the record still says that this host runs it."""

        def release_ours(job: Job) -> JobEvent | None:
            is_ours = job.claim is not None and job.claim.host == self._context.host
            if not is_ours or job.status not in ACTIVE_STATUSES or (job.round, job.attempt) != (round_, attempt):
                return None
            return host_lost_event(self._context, job)

        await transition_record(self._context, key, release_ours)


def _placeholder_endpoint(name: str) -> LocalEndpoint:
    """Return an endpoint for a job whose endpoint this host no longer has: the disk limit of its jobs is unknown."""
    return LocalEndpoint(Endpoint(name=name, image="", resources=Resources(disk_mb=0)), Path())


def resolve_claimed(jobs_dir: Path, containers: list[FoundContainer]) -> list[FoundContainer]:
    """Return the containers; a warm one that was assigned to a job carries that job's identity."""
    return [_resolve_claimed(jobs_dir, found) for found in containers]


def _resolve_claimed(jobs_dir: Path, found: FoundContainer) -> FoundContainer:
    if found.identity.job != NO_JOB or not found.identity.warm_dir:
        return found
    assigned = read_warm_assignment(jobs_dir / found.identity.warm_dir)
    return replace(found, identity=assigned.identity) if assigned else found


def container_folders(jobs_dir: Path) -> list[Path]:
    """Return the folders of attempts and of warm containers."""
    return sorted(path for path in jobs_dir.iterdir() if path.name.startswith(WARM_PREFIX) or path.name.count(".") == 3)


def parse_container_folder(folder: Path) -> tuple[JobKey, int, int] | None:
    """Return the job, round and attempt of `folder`; None if it has none, or if the name is not one of ours."""
    if not folder.name.startswith(WARM_PREFIX):
        owner, job, *numbers = folder.name.split(".")
        if not all(map(is_token, (owner, job))) or not all(map(_NUMBER.fullmatch, numbers)):
            return None
        return JobKey(owner, job), int(numbers[0]), int(numbers[1])
    identity = read_warm_assignment(folder)
    return (JobKey(identity.owner, identity.job), identity.round, identity.attempt) if identity else None
