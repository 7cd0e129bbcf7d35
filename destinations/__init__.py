"""Destinations: one file each, found by the registry in pipeline/registry.py; nothing else lists them."""
