"""Run one HeyGem job inside the vendor's own image. Needs Python 3.8 or later, the standard library, and jobkit.

Start reading at `work` (one job, step by step) and `loading` (what happens before the job). `vendor` is the port to the
vendor's code, with adapters `module_vendors` and `http_vendor`. `media_tools` is the port to ffmpeg and PyAV.

No code of the vendor is in here. What the worker assumes of it was published by its users: the names in its open
wrappers (run.py, app_local.py), and the lines of its logs.
"""
