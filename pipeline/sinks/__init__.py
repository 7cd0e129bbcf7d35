"""Sinks: one backend each. A sink turns what a destination wants to send into one outcome per hit."""
