"""One server: its address, the login, and the exchange of statements and values with it."""
