"""The vocabulary that every part of Lamplighter shares: frozen Structs and pure functions, no I/O.

Imports the standard library and msgspec, nothing else (kept by tests/test_architecture.py).
"""
