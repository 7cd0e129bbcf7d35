"""Handles signals, parent and children, file modes and limits of a process. Imports the standard library only."""
