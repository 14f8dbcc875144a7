"""Identity, sealing, signatures and pinned TLS for Tidings. Knows nothing of networks, stores or models."""
