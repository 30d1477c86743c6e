"""dblink's links: open connections with a name, cursors and an asynchronous query."""
