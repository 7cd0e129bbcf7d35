"""Destinations: one file each. The registry in pipeline/registry finds them; no other list exists."""
