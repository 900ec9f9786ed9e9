"""Draws a factory line's parts and trains the small demonstration models on the drawings."""
