"""The host's cards: a watch that cannot hang the runner, and pure functions that decide what may run where."""
