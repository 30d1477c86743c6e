"""Remote sets: rows of other servers as temporary tables of one."""
