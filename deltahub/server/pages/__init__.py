"""Web pages of a hub, rendered on the server; they need no script and no network beyond the hub."""
