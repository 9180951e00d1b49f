"""The routes of the native API, one module per subject.

To add a route, write a handler with a guard and add it to the module's `ROUTES`; add a new module to
`edge.app.MODULES`. Name the operation in `edge/http/api_notes.py`, describe new fields in `edge/http/api_fields.py`,
and list the route in docs/api.md: tests compare all three with the routes.
"""
