"""Provenance of results: atomic files, checksums, manifests and the errors of the Hub."""
