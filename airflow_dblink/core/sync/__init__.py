"""Sync: a table is made equal to another database's by moving only the difference.

Compare, plan, apply, verify: ``groups.py`` compares checksums of groups of keys inside the servers,
``plan.py`` finds the rows that differ, ``apply.py`` writes them, and ``verify.py`` checks the result.
``run.py`` calls them in this order, in one transaction of the destination.
"""
