"""The HTTP border: limits, parsing, errors and answers; it knows nothing of tensors."""
