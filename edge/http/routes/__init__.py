"""The routes of the native API, one module per resource.

To add a route, write a handler with a guard, add it to the module's `ROUTES`, and list it in docs/api.md; a test
compares that page with the routes. A new module must be added to `edge.app.MODULES`. `tus` parses and writes the
headers of resumable uploads for `uploads`.
"""
