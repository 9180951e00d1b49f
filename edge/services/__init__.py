"""What the edge does, without HTTP: intake, window, index, reconciler, hosts, views, streams, assets and keys."""
