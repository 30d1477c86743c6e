"""What belongs to the sync operator alone."""
