"""Events: rows of a table that tasks claim, each for one run, and none twice."""
