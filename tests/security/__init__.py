"""Attacks that were tried on the package, one file each; each of them has once succeeded."""
