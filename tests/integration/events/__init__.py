"""Tests of events: rows that runs claim."""
