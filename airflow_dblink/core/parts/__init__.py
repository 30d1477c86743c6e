"""A table loaded in parts by many tasks, all from one snapshot."""
