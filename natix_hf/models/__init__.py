"""Vision transformers: loading, preprocessing, features. Importing `natix_hf.models.dinov3` registers its head."""
