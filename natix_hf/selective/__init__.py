"""A guarantee for any model's answers. It needs numpy to answer and scipy to fit, and no torch."""
