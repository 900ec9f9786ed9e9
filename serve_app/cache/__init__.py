"""Which models are in memory: leases, admission, eviction; nothing of HTTP, Ray or tensors."""
