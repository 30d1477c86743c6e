"""Waiting until a query's answer is right: the question, and all questions that one event loop asks."""
