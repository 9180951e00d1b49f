"""The console: the page that the edge serves at `/`. This package has only its files, no code.

`index.html` loads `app.js`, which loads the other modules; there is no build step. Start with `app.js`: its `PAGES`
lists the pages, each a file in `pages/`. Every text is in `text.js`, in English and Chinese.
`edge.http.routes.console` serves the files and sets their headers. tests/console opens them in Chromium.
"""
