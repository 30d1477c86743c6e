"""Rows that flow: from COPY to COPY, from several servers into one, to CSV, to JSON."""
