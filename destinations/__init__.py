"""Destinations: one file each. The registry in pipeline/registry.py finds them; no other list exists."""
