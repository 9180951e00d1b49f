"""The reference page of the API at `/docs`, made from `/openapi.json` in the browser. This package has only its files.

`edge.http.routes.pages` serves them and sets their headers.
"""
