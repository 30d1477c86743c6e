"""The comparison of two tables by checksums of groups of rows, before and after the changes."""
