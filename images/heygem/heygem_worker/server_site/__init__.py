"""A folder for the PYTHONPATH of app_local.py: its sitecustomize.py is imported by that name, not from here."""
