"""What `make check-deploy` asks of deploy/ and .github/, with the tools in .kaiten/deploy."""
