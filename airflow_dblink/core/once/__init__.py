"""Exactly once: a transaction whose outcome the next try can ask for."""
