"""The asset store: the bytes of assets, named by their sha256.

Read `port` first: `AssetStore` and the errors that a store may raise. `directory.open_store` opens the store that the
settings name. `directory` keeps assets in a folder, `remote` in a bucket of S3, Google Cloud Storage or Azure.
`unfinished_uploads` keeps unfinished uploads, on the local disk or shared. `file_io` has durable writes, and passes
one body to several of them.

This package imports `schemas` and `bus`, and no other package of the edge. It knows digests and bytes; owners, names
and quotas are in `edge.assets`. Every package of the edge above it may import it. `remote` is imported only when a
bucket is configured, because obstore is an optional dependency.
"""
