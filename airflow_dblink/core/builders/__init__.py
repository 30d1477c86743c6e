"""dblink's builders of INSERT, UPDATE and DELETE."""
