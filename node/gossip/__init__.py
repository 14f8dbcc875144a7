"""Gossip: the core of the node. `core.Gossip.handle(event, now)` decides and returns actions (`events`); nothing in
this package opens a socket, a file or a clock.

Follows docs/protocol.md, sections "Links" and "Gossip". In the order in which a record meets it:

    dial       members with an address and no link, with backoff, for ever                             (dialing)
    hello      both sides say their version; of two links with one peer, both sides keep the same one  (links)
    digest     anti-entropy: compare what is settled by one hash, then by origin, then by sequence     (compare)
    announce   tell a link of what it lacks, and a few links of what is new                            (compare, rumors)
    fetch      ask one link at a time for headers, then chunks                                         (fetch)
    supply     give to peers what they ask for                                                         (supply)
    intake     check what comes, then keep it                                                          (intake)
    settle     a record that is whole, or has no body, or was taken back, is ours to announce          (holdings)

What a removed member wrote stays in the store, and is no longer compared, announced, served or asked for.

Deterministic: the same events, times and `rng` give the same actions, so a simulated swarm replays from its seed.
"""
