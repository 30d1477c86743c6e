"""Attacks that were tried on the package, one file each; each was once seen to get through."""
