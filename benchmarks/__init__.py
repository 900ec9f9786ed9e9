"""Measures serve_app against other ways to serve many YOLO models; see docs/benchmarks/."""
