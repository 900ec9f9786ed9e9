"""Where a model's bytes come from; one module per source."""
