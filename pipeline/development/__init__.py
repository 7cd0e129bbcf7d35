"""Tools for authors of destinations and for demonstrations."""
