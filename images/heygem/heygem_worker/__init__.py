"""Runs one HeyGem job inside the vendor's own image: Python 3.8 or later, the standard library, and jobkit.

Nothing of the vendor's is in here. What is assumed of it is what its users have published: the names of its open
wrappers (run.py, app_local.py), and the lines that its logs show.
"""
