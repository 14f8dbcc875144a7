"""Peers: software that ours is compared with."""
