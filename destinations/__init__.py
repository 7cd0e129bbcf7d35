"""Destinations: one file each, found by the registry in pipeline/delivery/declared.py; nothing else lists them."""
