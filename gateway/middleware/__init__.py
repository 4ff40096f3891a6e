"""One plain ASGI class a file; their order, with reasons, is in gateway/app.py."""
