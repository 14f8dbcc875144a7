"""The commands about a node's own keys. Thin like `node.cli`, which they are part of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node import show
from node.cli_options import Commands, Json, look_at_home, open_home

if TYPE_CHECKING:
    from crypto.keys import PublicKey
    from crypto.recovery import RecoveryKey
    from node.home import Home
    from node.records import LastGood

app = typer.Typer(
    cls=Commands,
    help="This node's keys: look, rotate, passphrase, replace, revoke.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("show")
def keys_show(context: typer.Context, json: Json = False) -> None:
    """Which keys there are, since when, and who can read what this node publishes. Needs no passphrase."""
    from node.keys import show as describe

    found = describe(look_at_home(context))
    if json:
        show.as_json(found)
        return
    show.line(found["identity"])
    if found["ended"]:
        show.line(f"this identity was {found['ended']}: peers count nothing that it signs from now on")
    for former in found["former"]:
        show.line(f"in place of {former['identity']}, {former['state']}")
    show.line(f"recovery key: {'published' if found['recovery_key'] else 'none; `tidings keys recovery` makes one'}")
    show.line(f"passphrase: {'yes' if found['protected'] else 'none; `tidings keys passphrase` sets one'}")
    rows = [[one["id"], one["since"] or "not published yet", one["state"]] for one in found["encryption_keys"]]
    show.table(["encryption key", "since (UTC)", ""], rows, empty="")
    epoch = found["epoch"]
    show.line(
        f"epoch {epoch['number']}, since {epoch['since']} UTC" if epoch else "no epoch yet: nothing was published"
    )
    members = [[name, "granted", ""] for name in found["granted"]]
    members += [[one["peer"], "waiting", one["reason"]] for one in found["waiting"]]
    show.table(["member", "this epoch", "why"], members, empty="No members yet.")


@app.command("rotate")
def keys_rotate(
    context: typer.Context,
    encryption: Annotated[
        bool, typer.Option("--encryption", help="Also make a new encryption key, to which peers grant theirs.")
    ] = False,
    json: Json = False,
) -> None:
    """Seal under a new key from now on: a new epoch, granted to those who are members now."""
    from node.keys import rotate

    rotated = rotate(open_home(context), encryption=encryption)
    show.as_json(rotated.to_json()) if json else show.line(rotated.describe())


@app.command("passphrase")
def keys_passphrase(
    context: typer.Context,
    new_file: Annotated[
        Path | None,
        typer.Option("--new-passphrase-file", metavar="FILE", help="Holds the new one; else it is asked for, twice."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Leave the keystore open: file permissions alone.")] = False,
) -> None:
    """Set, change or remove the passphrase of the keystore."""
    from node import passphrase
    from node.errors import UsageError
    from node.keys import set_passphrase

    if remove and new_file is not None:
        raise UsageError("--remove takes no new passphrase.")
    home = open_home(context)
    set_passphrase(home, None if remove else passphrase.choice(new_file, environment=False))
    if remove:
        show.line("The keystore has no passphrase now: whoever can read the file is this node.")
        return
    show.line("The keystore is sealed under the new passphrase. Earlier copies and backups of it are as they were.")
    if home.is_served():
        show.note("The running node goes on. Start it again before the next `keys rotate --encryption`.")


@app.command("recovery")
def keys_recovery(context: typer.Context, json: Json = False) -> None:
    """Make a recovery key for an identity that has none: shown once, its hash published."""
    from crypto.recovery import RecoveryKey
    from node.replacement import publish_recovery

    recovery = RecoveryKey.generate()
    publish_recovery(open_home(context), recovery, (lambda _: None) if json else show_recovery)
    if json:
        show.as_json({"recovery_key": recovery.text})


@app.command("replace")
def keys_replace(
    context: typer.Context,
    new_recovery_key: Annotated[
        bool, typer.Option("--new-recovery-key", help="The new identity gets another one, shown once.")
    ] = False,
    json: Json = False,
) -> None:
    """Give this node a new identity, signed by the old one, which peers follow by themselves. Stop the node first."""
    from node.replacement import replace

    home = open_home(context)
    recovery = _new_recovery(new_recovery_key or home.author.recovery_hash() is None, json)
    replaced = replace(home, recovery)
    if json:
        show.as_json(replaced.to_json() | ({"recovery_key": recovery.text} if recovery else {}))
    else:
        show.line(replaced.describe())


@app.command("revoke")
def keys_revoke(
    context: typer.Context,
    identity: Annotated[
        str | None, typer.Argument(metavar="[KEY|NAME]", help="Whose identity; else this node's own.")
    ] = None,
    recovery_key_file: Annotated[
        Path | None,
        typer.Option("--recovery-key-file", metavar="FILE", help="Holds its recovery key; else it is asked for."),
    ] = None,
    last_good: Annotated[
        list[str] | None,
        typer.Option("--last-good", metavar="INCARNATION:N", help="What still counts; several times, or none."),
    ] = None,
    good_until: Annotated[
        str | None,
        typer.Option("--good-until", metavar="TIME", help="What arrived here by then counts: 7d, 2026-11-20T14:30."),
    ] = None,
    successor: Annotated[
        bool | None,
        typer.Option("--successor/--no-successor", help="Whether this node takes its place; it does after its own."),
    ] = None,
    new_recovery_key: Annotated[
        bool, typer.Option("--new-recovery-key", help="A new identity gets another recovery key, shown once.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write a bundle that holds it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would still count, and do nothing.")] = False,
    json: Json = False,
) -> None:
    """Take a stolen identity out of service with its recovery key, which is typed, piped in, or read from a file.

    Peers that hold the hash of the recovery key cut the identity off and use nothing that it signed after the last good
    number. Stop the node first to revoke its own identity: it gets a new one."""
    from node import passphrase, replacement

    home = open_home(context)
    key = replacement.identity_meant(home, identity)
    good = _good(home, key, last_good, good_until)
    if dry_run:
        _show_good(replacement.listing(home, key, good), json)
        return
    is_own = key == home.me or key in home.keystore.former_keys
    takes_over = successor if successor is not None else is_own
    recovery = passphrase.recovery_key(recovery_key_file)
    is_present = key in (home.me, home.author.untold())  # the latter if this command was stopped before
    another = _new_recovery(is_present and takes_over and new_recovery_key, json)
    revoked = replacement.revoke(home, key, recovery, good, takes_over=takes_over, new_recovery=another)
    # First what happened, and a key that is shown once: the stick may be full.
    if json:
        show.as_json(revoked.to_json() | ({"recovery_key": another.text} if another else {}))
    else:
        show.line(revoked.describe())
    if output is not None:
        replacement.write_bundle(revoked.home, revoked.record, output)
    if not json:
        show.line(_how_it_spreads(output))


def _how_it_spreads(output: Path | None) -> str:
    if output is not None:
        return f"{output} holds the revocation for peers that no link reaches: `tidings bundle import`."
    return "It spreads while a node that trusts the identity is running; `-o FILE` writes a bundle too."


def show_recovery(recovery: RecoveryKey) -> None:
    """Show a recovery key, on stderr like all remarks: stdout is for results."""
    show.note(
        "Its recovery key, shown this once and stored nowhere. Write it down and keep it away from this machine: it"
    )
    show.note("takes this identity out of service if that is ever stolen, and can do nothing else.")
    show.note(recovery.text)


def _new_recovery(is_wanted: bool, json: bool) -> RecoveryKey | None:
    """A new recovery key, shown before anything depends on it, unless it goes into what programs read."""
    from crypto.recovery import RecoveryKey

    recovery = RecoveryKey.generate() if is_wanted else None
    if recovery is not None and not json:
        show_recovery(recovery)
    return recovery


def _good(home: Home, key: PublicKey, last_good: list[str] | None, good_until: str | None) -> LastGood:
    """What the options say still counts, else what this home knows to."""
    import time

    from node.bundle_export import parse_since
    from node.errors import UsageError
    from node.replacement import last_good as known
    from node.replacement import parse_last_good

    if last_good and good_until:
        raise UsageError("--last-good and --good-until say the same thing twice; give one of them.")
    if last_good:
        return parse_last_good(last_good)
    good = known(home, key, parse_since(good_until, time.time(), "--good-until") if good_until else None)
    if not good:
        raise UsageError(
            f"No record of {key.short} that could count is here. Give --last-good INCARNATION:N, as a partner's "
            "`tidings keys revoke KEY --dry-run` shows them, or --last-good none."
        )
    return good


def _show_good(listed: list[dict[str, Any]], json: bool) -> None:
    if json:
        show.as_json(listed)
        return
    columns = ["incarnation", "records", "last", "would count up to", "first came (UTC)", "last came (UTC)"]
    names = ["incarnation", "records", "last", "last_good", "first_seen", "last_seen"]
    show.table(columns, [[str(one[name]) for name in names] for one in listed], empty="No record of it is here.")
