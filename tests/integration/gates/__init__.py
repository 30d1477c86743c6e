"""Tests of waiting for a query's answer."""
