"""Other people's protocols: thin, over the same services as the native API."""
