"""What the StreetVision subnet asks of a miner."""
