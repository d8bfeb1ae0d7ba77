"""The deployable model: inference, policy, building, loading and verifying."""
