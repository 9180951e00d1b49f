"""The image's program: run one MuseTalk job and exit."""

import jobkit
from musetalk_worker.work import work

jobkit.run(work)
