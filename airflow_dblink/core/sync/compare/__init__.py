"""Where two tables differ: checksums of groups of rows."""
