"""What DblinkHook is made of."""
