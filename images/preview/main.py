"""The image's program: one preview job, then gone."""

import jobkit
from lipsync.engine import load
from lipsync.work import work

jobkit.run(work, load=load)
