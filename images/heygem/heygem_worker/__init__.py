"""Run one HeyGem job inside the vendor's own image. Needs Python 3.8 or later, the standard library, and jobkit.

Start reading at `work` (one job, step by step) and `loading` (what happens before the job). `vendor` is the port to the
vendor's code, with adapters `module_vendors` and `http_vendor`. `media_tools` is the port to ffmpeg and PyAV.

This package contains no code of the vendor. The worker's assumptions come from material that users published: the names
in the vendor's open wrappers (run.py, app_local.py), and the lines of its logs.
"""
