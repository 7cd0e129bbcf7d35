"""The deliver role: routed hits to their sinks, one consumer group and one Faust app per connection.

It imports nothing here, so that commands that read need no Faust.
"""
