"""What is done about it: the plan, and its rows applied."""
