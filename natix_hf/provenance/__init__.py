"""What was made from what: atomic files, checksums, manifests and run folders."""
