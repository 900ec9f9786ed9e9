"""Tests of this folder of the application."""
