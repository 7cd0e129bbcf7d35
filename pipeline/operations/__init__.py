"""Reads, compares and replays what the topics hold, for commands and scripts."""
