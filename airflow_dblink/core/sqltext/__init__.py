"""SQL that is read or written as text; nothing is sent."""
