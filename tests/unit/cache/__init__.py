"""Tests of `serve_app.cache`."""
