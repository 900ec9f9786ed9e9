"""The HTTP side: limits, parsing, reference to key, the answer; nothing of tensors."""
