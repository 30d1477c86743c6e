"""The changes of a sync: the plan, and its rows applied."""
