"""Sets of tables: which ones are meant, and what is wrong with all of them at once."""
