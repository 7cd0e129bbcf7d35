"""Proves the delivery guarantee: sends traffic, injects faults, then reads every topic and checks each hit."""
