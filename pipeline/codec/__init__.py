"""Decoding and encoding of records and their parts."""
