"""Routers compared in a simulation: many replicas, thousands of models, no cluster."""
