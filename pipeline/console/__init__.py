"""Renders results for the terminal."""
