"""The Ray side of a replica: the multiplexed entry, health, and the bridge to Ray's wrapper."""
