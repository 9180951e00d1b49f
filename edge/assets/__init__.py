"""Assets: files of an owner, as references over the bytes in the asset store.

Start at `service`. `AssetService` stores bodies, keeps a reference for each owner, applies retention and sweeps the
trash. Two owners with the same file share its bytes, and neither learns of the other. `uploads` receives resumable
uploads, whose bytes become an asset when they are complete.

May import `edge.core`, `edge.store`, `edge.index` and `edge.owners`. Imported by `edge.jobs` and all packages above.
"""
