"""Models on several replicas: how many copies are wanted, and which replica holds which."""
