"""The HTTP API: routes, authentication, request bodies, responses and the OpenAPI document.

Start with `routes/jobs.submit_job`. A request passes `middleware`, then `auth`, then a handler in `routes`. Handlers
receive the services of the edge and the owner by `dependencies`, read parameters and bodies with `request_input`, and
send files with `responses`. An exception becomes an RFC 9457 document in `problems`.

`api_document` makes `/openapi.json`. A new route needs a row in `api_notes`, and a new field one in `api_fields` (of a
job: `api_notes`). `openapi` adds to Litestar's draft what the types do not show: bodies, headers, extra statuses.
Only `edge.server`, `edge.facades` and the composition root (`edge.app`, `edge.container`, `edge.process`) import it.
"""
