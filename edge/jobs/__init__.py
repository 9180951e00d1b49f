"""The life of a job at the edge: admission, queueing, following and repair.

May import `edge.core`, `edge.index`, `edge.owners`, `edge.hosts` and `edge.assets`. Usage, webhooks, power, deletion,
HTTP and the facades may import it. Start reading at `service.JobService.submit`.

- `service`: what an owner does to jobs: submit, cancel, retry, delete; `job_actions`: the same to many jobs
- `submission`: whether the broker can take new work, and from a request body to a record
- `publish_window`: fair queueing, at most N messages per owner, pool and priority in the queue JOBS
- `inputs`: queues jobs when their last input is there, and downloads inputs given as URLs
- `view`: records as clients see them; `forecast`: why a job waits, and when it will start and end
- `event_stream`: streams of the events of a job or an owner, with resume
- `reconciler`: idempotent steps that repair what a crash interrupted

Every change of a record is a compare-and-set on STATE. What follows the write (the message in JOBS, a nudge) may fail:
the reconciler completes it.
"""
