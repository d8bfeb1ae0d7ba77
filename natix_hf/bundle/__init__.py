"""The deployable model: inference, policy, building, loading, verifying and publishing."""
