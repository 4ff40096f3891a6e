"""Who calls: tokens of several issuers, their keys, API keys, and what was revoked."""
