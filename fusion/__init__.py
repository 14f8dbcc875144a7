"""Private summaries of data and their fusion into one model. Knows nothing of keys, peers or networks."""
