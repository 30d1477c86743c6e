"""Links from a task to other pages."""
