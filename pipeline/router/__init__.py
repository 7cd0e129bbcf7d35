"""The route role: deduplicate, enrich, decide and encode the hits of `hits-raw`, one transaction per batch.

This module imports nothing, so that read-only commands do not load Faust.
"""
