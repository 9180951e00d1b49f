"""The WebSocket gateway, `/ws` and `/dsp` (PROTOCOLS 2). It knows the envelope; what jobs are the services know."""
