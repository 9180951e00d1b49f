"""Played, not the vendor's: made by us from what its users have published."""
