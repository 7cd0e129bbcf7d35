"""Enrichments: each derives members of `context` from what the hit and its request say; one per file."""
