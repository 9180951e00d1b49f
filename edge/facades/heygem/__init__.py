"""The HeyGem facade: `/easy/…`, for programs written for a bare HeyGem server.

`routes` serves submit, query, download and upload, and the vendor's second server, text to speech; start there.
`mapping` translates bodies and jobs. `protocol` finds the caller, on the keyless port as well, and has the vendor's
responses. `facade` has settings and state: it opens files that clients name, and copies results into the folder that
clients share with the edge.
Only `edge.app`, `edge.container`, `edge.process` and `edge.settings` may import this package.
"""
