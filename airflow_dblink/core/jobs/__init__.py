"""Remote jobs: statements that run on a server by themselves, with nobody holding their connection."""
