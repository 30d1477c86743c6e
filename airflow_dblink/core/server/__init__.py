"""One server: where it is, connecting, and how we speak to it."""
