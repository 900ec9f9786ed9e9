"""From a spec to an open model: fetch, verify, open, warm up."""
