"""The HTTP server: uvicorn, with bounds on what a stranger may hold before a key is known.

`listener` accepts connections, `connections` counts them, `protocol` bounds a request's head and what is sent over a
WebSocket before it is authenticated, `server` puts them together. `edge.process` starts it; nothing else imports it.
"""
