"""Vision transformers: the table of architectures, adapters, loading, preprocessing and cached features."""
