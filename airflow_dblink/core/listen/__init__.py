"""Listening to a database in an event loop: one session for all waiters."""
