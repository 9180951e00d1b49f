"""The HTTP server: uvicorn with limits on what a client can consume before it is authenticated.

Start with `bounded_server.make_server`, whose listener accepts connections. `connections` has the settings and counts
the connections, and `protocol` limits the head of a request and the frames of a WebSocket that is not yet
authenticated. `certificate` creates a certificate, and reloads a renewed one. Only `edge.process` starts servers;
`edge.settings` imports the settings.
"""
