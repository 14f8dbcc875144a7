"""Accounts: what the entries of a ledger mean, replayed one after another. No I/O, no clock.

An account belongs to one dataset: a cap, an accountant that adds up, and what was charged to the whole dataset and to
each of its parts. A record is in one part of each rule (`fusion.parts`), so no record was ever part of more than

    whole  +  over the rules, the largest of that rule's parts

which is what a cap is compared with. A release about one part is compared with what the records of that part were
charged: the other parts of its rule do not count.

`charged` is kept beside it: everything ever charged or burned, parts added up. It never shrinks, which is why peers are
told this number and not the other (docs/protocol.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from fusion.accountants import ACCOUNTANTS, Accountant, Costs, add, largest
from fusion.accounting import epsilon_of
from fusion.errors import BudgetError
from fusion.parts import Part

GENESIS = bytes(32)


@dataclass(frozen=True)
class Moment:
    """The state of a dataset's budget right after one entry of the ledger."""

    created_s: float
    what: str  # "release", "raise" or "rollback"
    release_id: str | None
    spent: Costs
    cap_epsilon: float


@dataclass
class Account:
    """The budget of one dataset."""

    cap_epsilon: float
    delta: float
    unit: str
    adjacency: str
    accountant: Accountant
    whole: Costs = ()
    parts: dict[str, dict[str, Costs]] = field(default_factory=dict)  # rule -> value -> costs
    charged: Costs = ()
    history: list[Moment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.whole = self.whole or self.nothing
        self.charged = self.charged or self.nothing

    @property
    def nothing(self) -> Costs:
        return (0,) * self.accountant.entries

    @property
    def cap(self) -> Costs:
        return self.accountant.cap(self.cap_epsilon, self.delta)

    def spent(self, part: Part | None = None) -> Costs:
        """The most that any record (any record of the part) was charged."""
        total = self.whole
        for rule, values in self.parts.items():
            if part is not None and rule == part.rule:
                total = add(total, values.get(part.value, self.nothing))
            else:
                total = add(total, largest(list(values.values()), self.accountant.entries))
        return total

    def fits(self, cost: Costs, part: Part | None) -> bool:
        """Whether a release at this cost stays within the cap."""
        return any(total <= cap for total, cap in zip(add(self.spent(part), cost), self.cap, strict=True))

    def charge(self, cost: Costs, part: Part | None) -> None:
        self.charged = add(self.charged, cost)
        if part is None:
            self.whole = add(self.whole, cost)
        else:
            values = self.parts.setdefault(part.rule, {})
            values[part.value] = add(values.get(part.value, self.nothing), cost)

    def spent_epsilon(self, spent: Costs) -> float:
        return self.accountant.epsilon(spent, self.delta)

    def left_epsilon(self, part: Part | None = None) -> float:
        """The largest epsilon, in ten-thousandths, of one more Gaussian release at the account's delta."""
        left = tuple(cap - spent for cap, spent in zip(self.cap, self.spent(part), strict=True))
        return math.floor(epsilon_of(self.accountant.left_mu(left), self.delta) * 1e4) / 1e4

    def terms(self) -> dict[str, Any]:
        """What the first use fixed, as the ledger keeps it."""
        return {
            "cap_epsilon": self.cap_epsilon,
            "delta": self.delta,
            "unit": self.unit,
            "adjacency": self.adjacency,
            "accountant": self.accountant.name,
        }

    def note(self, event: dict[str, Any], what: str) -> None:
        """Remember how things stand after this entry."""
        moment = Moment(event["created_s"], what, event.get("release"), self.spent(), self.cap_epsilon)
        self.history.append(moment)


@dataclass(frozen=True)
class Total:
    """What one dataset was ever charged, under the tag that stands for its name."""

    tag: bytes
    cap_epsilon: float
    delta: float
    charged: Costs


@dataclass
class State:
    """A ledger, replayed from its first entry."""

    chain: list[bytes] = field(default_factory=list)  # the hash after each entry
    accounts: dict[str, Account] = field(default_factory=dict)
    releases: dict[str, dict[str, Any]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)  # tag (hex) -> dataset
    nameless: dict[str, Total] = field(default_factory=dict)  # burned for datasets not used here yet, by tag (hex)
    accepted: set[bytes] = field(default_factory=set)  # HEADs of another copy that were accepted and burned

    @property
    def position(self) -> int:
        return len(self.chain)

    @property
    def head(self) -> bytes:
        return self.chain[-1] if self.chain else GENESIS

    def totals(self) -> tuple[Total, ...]:
        """Every dataset ever charged, by ascending tag."""
        named = [
            Total(bytes.fromhex(tag), account.cap_epsilon, account.delta, account.charged)
            for tag, dataset in self.tags.items()
            for account in (self.accounts[dataset],)
        ]
        return tuple(sorted((*named, *self.nameless.values()), key=lambda total: total.tag))


def apply(state: State, event: dict[str, Any]) -> None:
    """What one entry of the chain means."""
    match event["event"]:
        case "DATASET":
            _open(state, event)
        case "RESERVED":
            account = state.accounts[event["dataset"]]
            account.charge(tuple(event["cost"]), Part(**event["part"]) if event["part"] else None)
            account.note(event, "release")
            state.releases[event["release"]] = event | {"state": "RESERVED", "record": None}
        case "READY":
            state.releases[event["release"]] |= {"state": "READY", "payload": event["payload"]}
        case "PUBLISHED":
            state.releases[event["release"]] |= {"state": "PUBLISHED", "record": event["record"]}
        case "RAISED":
            account = state.accounts[event["dataset"]]
            account.cap_epsilon = event["cap_epsilon"]
            account.note(event, "raise")
        case "ROLLBACK":
            _burn(state, event)
        case other:
            raise BudgetError(f"the budget ledger holds an entry of kind {other}; update this software")


def _open(state: State, event: dict[str, Any]) -> None:
    terms = {key: event[key] for key in ("cap_epsilon", "delta", "unit", "adjacency")}
    account = Account(**terms, accountant=ACCOUNTANTS[event["accountant"]])
    state.accounts[event["dataset"]] = account
    state.tags[event["tag"]] = event["dataset"]
    burned = state.nameless.pop(event["tag"], None)
    if burned is not None:
        account.charge(burned.charged, None)
        account.note(event, "rollback")


def _burn(state: State, event: dict[str, Any]) -> None:
    """Charge what another copy of this ledger spent. It may have been on any rows: it counts for the whole dataset."""
    state.accepted |= {bytes.fromhex(head) for head in event["heads"]}
    for burned in event["burned"]:
        tag, costs = burned["tag"], tuple(burned["costs"])
        if tag in state.tags:
            account = state.accounts[state.tags[tag]]
            account.charge(costs, None)
            account.note(event, "rollback")
        else:
            before = state.nameless.get(tag)
            costs = add(before.charged, costs) if before else costs
            state.nameless[tag] = Total(bytes.fromhex(tag), burned["cap_epsilon"], burned["delta"], costs)
