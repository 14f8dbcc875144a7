"""Simulation: a coalition on paper. The real gossip core on a fake clock, between simulated stores and links that fail.

simulator  nodes, the swarm, the clock
network    links and what goes wrong with them
store      what a node holds, in memory
simulate   the experiment of `tidings simulate`
report     what it shows: a table and a picture
"""
