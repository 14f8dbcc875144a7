"""What a home holds: keys, who can read whom, what is stuck and why, and the budget. All of it is what `status`, `keys
show` and `budget` say; here it is weighed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from crypto.errors import CryptoError
from fusion.errors import FusionError
from node import heads, roster_status, status
from node.budget import statement
from node.doctor.findings import Finding, fail, ok, warn
from node.home import Home
from node.keys import show as keys_of
from node.roster_follow import roll

SPENT_OUT_EPSILON: Final = 0.01
"""With less left than this no release is worth making."""


def keystore(home: Home) -> Iterator[Finding]:
    """Whether it opens, and whether a passphrase protects it."""
    try:
        home.keystore.open()
    except CryptoError as error:
        yield warn("keystore", str(error).rstrip("."), "what needs a secret was left out below")
        return
    if home.keystore.is_protected:
        yield ok("keystore", "opens with its passphrase")
    else:
        text = "opens, and has no passphrase: whoever can read the file is this node"
        yield ok("keystore", f"{text} (`tidings keys passphrase` sets one)")


def key_cards(home: Home) -> Iterator[Finding]:
    """Which members can read what is published here, and what they wait for."""
    keys = keys_of(home)
    for one in keys["waiting"]:
        advice = "it comes once the peer was linked, or by bundle" if "card" in one["reason"] else "run `tidings serve`"
        yield warn("key cards", f"{one['peer']} cannot read what is published here: {one['reason']}", advice)
    lost = sum(one["state"] == "lost" for one in keys["encryption_keys"])
    if lost:
        text = f"{lost} of this node's encryption keys are lost: the keystore is an old copy"
        yield warn("key cards", text, "restore the newest keystore, or run `tidings keys rotate --encryption`")
    if not keys["waiting"] and not lost and home.epochs.members():
        yield ok("key cards", "every member can read what is published here")


def records(home: Home) -> Iterator[Finding]:
    """What cannot be used, counted by whose it is and why; what signed records hold against somebody."""
    usable, stuck = 0, Counter[tuple[str, str, str]]()
    for task in status.tasks(home):
        usable += task["summaries"]
        stuck.update((task["name"], one["origin"], one["reason"]) for one in task["stuck"])
        stuck.update((task["name"], one["origin"], one["reason"]) for one in task["models"] if one["reason"])
    for (task_name, origin, reason), count in stuck.items():
        many = f" ({count} records)" if count > 1 else ""
        yield warn("records", f"{task_name}, from {origin}: {reason}{many}")
    if not stuck:
        yield ok("records", f"{len(home.store.held()):,} here; none is stuck" if usable else "no summary is stuck")
    for notice in status.conduct(home):
        is_own = notice["origin"] == home.settings.name
        advice = "see docs/operations.md" if is_own else "ask its operator"
        yield warn("conduct", f"{notice['origin']}: {notice['reason']}", advice)


def roster(home: Home) -> Iterator[Finding]:
    """Whether the signed list of members, if one is followed, stands undisputed and agrees with the peers here."""
    held = roll(home)
    if held is None:
        return
    told = [*roster_status.notices(home), *roster_status.waiting(home, held)]
    for notice in told:
        yield warn("roster", notice, "`tidings roster status` shows what is in force")
    if not told:
        yield ok("roster", f"version {held.in_force.roster.version} of {held.in_force.roster.name} is in force")


def budget(home: Home) -> Iterator[Finding]:
    """Whether the ledger is the newest there is, whole, and what it leaves to spend."""
    if not home.has_ledger:
        if heads.own_heads(home):
            text = "ledger.db is gone, and peers hold proof that this node has spent"
            yield fail("budget", text, 'publish nothing; see "Restoring a backup" in docs/operations.md')
        else:
            yield ok("budget", "nothing was spent yet")
        return
    try:
        accounts = statement(home)
        behind = heads.is_behind(home)
    except CryptoError:
        behind = False  # the ledger needed a secret; the keystore's own line says that it is locked
    except FusionError as error:
        yield fail("budget", str(error), "restore ledger.db from the newest backup; publish nothing before that")
        return
    if behind:
        yield fail("budget", status.OLD_LEDGER, "restore the newest ledger.db, or `tidings budget accept-rollback`")
    yield from map(_account, accounts)
    if not accounts and not behind:
        yield ok("budget", "nothing was spent yet")


def _account(account: dict[str, Any]) -> Finding:
    name, left, cap = account["dataset"], account["left_epsilon"], account["cap_epsilon"]
    if left < SPENT_OUT_EPSILON:
        return warn("budget", f"dataset {name} is spent: epsilon {account['spent_epsilon']:.3f} of {cap:g}",
                    "new rows as parts, or `tidings budget raise`")  # fmt: skip
    return ok("budget", f"dataset {name}: epsilon {left:.3f} of {cap:g} left")
