"""The console: the page that the edge serves at `/`. This package has only its files, no code.

`index.html` loads `app.js`, which loads the other modules; there is no build step. Start with `app.js`.
`edge.http.routes.console` serves the files and sets their headers.
"""
