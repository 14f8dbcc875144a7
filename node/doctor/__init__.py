"""`tidings doctor`: looks at everything that a node depends on and says what is wrong, and what to do, one line a
finding.

    findings.py    what a finding is
    machine.py     the machine and the home: clock, disk, permissions, software, store file
    network.py     the port, each peer, and clocks compared with peers
    state.py       keystore, key cards, records, budget

It works with the node running or stopped and changes nothing: the home is opened as `status` opens it, and only if its
store is whole and of this release; the room for a write is tried with a file that never has a name. What a state means
is decided where `status` asks for it, and here only weighed. Peers are asked over the health service (`health`), which
is no link, so that nobody's gossip is disturbed."""

from node.doctor.doctor import examine
from node.doctor.findings import Finding, Level

__all__ = ["Finding", "Level", "examine"]
