"""Parts of the sync operator: its watermark and its file of statements."""
