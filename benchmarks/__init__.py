"""Measurements behind the claims of the README and the docs: `make bench` runs them all and writes RESULTS.md."""
