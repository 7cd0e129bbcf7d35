"""The deliver role: sends routed hits to their sinks, with one consumer group and one Faust app per connection.

This module imports nothing, so that read-only commands do not load Faust.
"""
