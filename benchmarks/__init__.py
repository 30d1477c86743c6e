"""Benchmarks: what the provider costs beside the programs and extensions it competes with."""
