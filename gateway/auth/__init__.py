"""Authentication: JWTs of several issuers, their keys, API keys, and revocation."""
