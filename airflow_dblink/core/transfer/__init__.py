"""A transfer: what it will do, and doing it."""
