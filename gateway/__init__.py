"""The HTTP edge: the wire contract, the routes, and the middleware around them."""
