"""The pure processing steps of a hit: accept, deduplicate, validate, enrich, decide."""
