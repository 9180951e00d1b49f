"""The RunPod facade: `/v2/{endpoint}/…`, for clients of RunPod's serverless API.

`routes` has the handlers; start there. `mapping` translates bodies and jobs between RunPod's format and ours, and
`health` counts jobs and workers. Only `edge.app` imports this package.
"""
