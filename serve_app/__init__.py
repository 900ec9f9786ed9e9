"""serve_app: one Ray Serve application that serves a whole fleet of YOLO models on demand."""
