"""Enrichments, one per file: each derives members of `context` from a hit and its request."""
