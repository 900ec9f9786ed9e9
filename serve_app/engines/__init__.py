"""What runs a model on a device; nothing of models' names."""
