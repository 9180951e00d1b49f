"""One attempt at one job, from its inputs to its record.

Start reading at `execution.Execution.run`, the outer line: run, deliver, record, acknowledge, clean up. `container_run`
is the inner one: one container under its limits. They use `job_files` (inputs, job.json, outputs), `output_pump` (log
and progress, limited by `output_filters`), `disk_usage` and `warm_container`. `verdict` (pure) classifies how an
attempt ended; the failure codes are chosen there. `durable_state` is the only writer of the job's record, and keeps the
checkpoint: what the next runner process needs after a crash.

`claiming` starts executions; nothing here imports it.
"""
