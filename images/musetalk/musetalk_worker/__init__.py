"""Runs MuseTalk's own program for one job. `work` is the job, `program` the program's start, progress and failures."""
