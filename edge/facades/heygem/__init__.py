"""The HeyGem facade: `/easy/…`, for programs written for a bare HeyGem server.

`routes` serves submit, query, download and upload; start there. `speech` serves the vendor's second server, text to
speech. `mapping` translates bodies and jobs, `responses` the vendor's
codes, and `auth` finds the caller, on the keyless port as well. `shared_dir` opens files that clients name, and
`result_export` copies results into the folder that clients share with the edge. `facade` has settings and state.
Only `edge.app`, `edge.container`, `edge.process` and `edge.settings` may import this package.
"""
