"""Vision transformers: loading, preprocessing, features. Importing this registers the DINOv3 head."""

from natix_hf.models.dinov3 import DINOv3ViTForImageClassification

__all__ = ["DINOv3ViTForImageClassification"]
