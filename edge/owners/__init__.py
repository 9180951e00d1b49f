"""Owners: who may call the edge, how much they may use, and the audit log.

An owner is the tenant that a key belongs to. Read `api_keys` first: `ApiKeyStore.authenticate` turns the text of a
credential into an `ApiKey`. `signed_credentials` has what is made from a key and not stored: signed URLs, short-lived
tokens for clients that cannot send a header, and sessions of the console. `quotas` limits jobs, bytes, rates and open
streams. `secrets` keeps values for the programs of jobs, sealed with `secret_keys`. `audit_log` records who created,
rotated or revoked a credential.

May import `edge.core`, `edge.store` and `edge.index`. Imported by `edge.hosts`, `edge.assets`, `edge.jobs` and
all packages above them. Nothing here knows HTTP: `edge.http.auth` reads the headers.
"""
