"""Pure stages of the way of one hit: accept, deduplicate, enrich, decide."""
