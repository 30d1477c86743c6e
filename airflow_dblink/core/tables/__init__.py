"""Relations, their columns, types, keys and sequences, and how those of two servers match."""
