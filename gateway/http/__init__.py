"""HTTP/1.1 connections: limits, backpressure and timeouts around the server of uvicorn."""
