"""The HTTP server: formats, one queue for all clients, bounds, and a page. Needs the [serve] extra."""
