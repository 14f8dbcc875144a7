"""The Tidings node: records, store, gossip, transport and the command line."""
