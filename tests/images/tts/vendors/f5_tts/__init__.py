"""Stands in for the package f5-tts 1.1.22, whose real one needs gigabytes of weights and a GPU."""
