"""The route role: deduplicate, enrich, decide and encode the hits of `hits-raw`, one transaction per batch.

It imports nothing here, so that commands that read need no Faust.
"""
