"""The command line, thin: each command reads what was typed, calls one function, and shows what came of it.

Its names and meanings are a contract. What a command needs is imported inside it, so that `tidings --help` and a relay
never pay for tables or models.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from node import cli_answer, cli_bundle, cli_doctor, cli_keys, cli_models, cli_roster, cli_simulate, show
from node.cli_options import Commands, Json, LogFormat, LogLevel, TaskName, look_at_home, open_home

app = typer.Typer(
    name="tidings",
    cls=Commands,
    help="Private one-shot federated learning between peers: publish one private summary, fuse what you hold.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
peer_app = typer.Typer(
    cls=Commands, help="Members whose keys this node trusts.", no_args_is_help=True, rich_markup_mode=None
)
task_app = typer.Typer(
    cls=Commands, help="Learning tasks: create, accept, look at.", no_args_is_help=True, rich_markup_mode=None
)
budget_app = typer.Typer(cls=Commands, help="The privacy budget.", rich_markup_mode=None)
app.add_typer(peer_app, name="peer")
app.add_typer(task_app, name="task")
app.add_typer(budget_app, name="budget")
app.add_typer(cli_models.app)
app.add_typer(cli_answer.app)
app.add_typer(cli_bundle.app, name="bundle")
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_roster.app, name="roster")
app.add_typer(cli_doctor.app)
app.add_typer(cli_simulate.app)

DEFAULT_HOME = Path("~/.tidings")


@app.callback()
def options(
    context: typer.Context,
    home: Annotated[
        Path,
        typer.Option("--home", envvar="TIDINGS_HOME", metavar="DIR", help="Holds everything of one node."),
    ] = DEFAULT_HOME,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--passphrase-file", metavar="FILE", help="Opens the keystore; else TIDINGS_PASSPHRASE, or a prompt."
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error, and log more.")] = False,
    keys_on_stdin: Annotated[bool, typer.Option("--keys-on-stdin", hidden=True)] = False,
) -> None:
    from fusion import backbones

    context.obj = home.expanduser()
    context.meta["debug"] = debug
    context.meta["passphrase_file"] = passphrase_file
    context.meta["keys_on_stdin"] = keys_on_stdin  # how `serve` hands them to a query that it starts
    if keys_on_stdin:
        from node.orphans import end_with_parent

        end_with_parent()
    backbones.use_directory(backbones.of_home(context.obj))  # `predict` needs no node, but may find its files


# ------------------------------------------------------------------------------------------------ identity and peers


@app.command()
def init(
    context: typer.Context,
    name: Annotated[str, typer.Option("--name", metavar="N", help="What to call this node here.")] = "me",
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Where peers reach it; none: it dials out only."),
    ] = None,
    protected: Annotated[
        bool,
        typer.Option("--passphrase", help="Seal the keystore under a passphrase: asked for, or --passphrase-file."),
    ] = False,
    json: Json = False,
) -> None:
    """Make this node's identity and store. Prints its public key, and, this once, its recovery key."""
    from crypto.recovery import RecoveryKey
    from node import passphrase
    from node.home import Home
    from node.peers import check_address, check_name

    file = context.meta["passphrase_file"]
    choose = passphrase.choice(file, environment=True) if protected or file else None
    recovery = RecoveryKey.generate()
    address = check_address(listen) if listen else None
    home = Home.init(context.obj, check_name(name), address, choose, recovery_hash=recovery.hash)
    if json:
        show.as_json({"home": str(home.path), "key": home.me.text, "recovery_key": recovery.text})
        return
    show.note(f"A new node lives in {home.path}. Give its public key to your peers:")
    show.line(home.me.text)
    cli_keys.show_recovery(recovery)


@app.command("id")
def identity(context: typer.Context) -> None:
    """Print this node's public key, alone."""
    show.line(look_at_home(context).me.text)


@peer_app.command("add")
def peer_add(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its public key, as its `tidings id` prints it.")],
    name: Annotated[str | None, typer.Option("--name", metavar="N", help="What to call it here.")] = None,
    address: Annotated[
        list[str] | None,
        typer.Option("--address", metavar="HOST:PORT", help="Where to reach it; several are tried in turn."),
    ] = None,
    query_only: Annotated[bool, typer.Option("--query-only", help="It may ask for models, and no more.")] = False,
) -> None:
    """Trust a member: exchange records with it and let it read what this node publishes.

    Without --address it must dial this node, or is reached through others. Given again for the same key, --address
    takes the place of what was given before, without a restart."""
    from node.membership import add_peer

    peer = add_peer(open_home(context), key, name, *(address or ()), query_only=query_only)
    if query_only:
        show.line(f"{peer.name} may ask this node for models.")
    else:
        show.line(f"{peer.name} is a member here. It must add this node's key too: `tidings id`.")


@peer_app.command("list")
def peer_list(context: typer.Context, json: Json = False) -> None:
    """The peers of this node, and how the links to them are."""
    from node.status import peers

    home = look_at_home(context)
    listed = peers(home, home.is_served())
    if json:
        show.as_json(listed)
        return
    heading, *lines = _peer_lines(listed)
    show.line(heading)
    for one, line in zip(listed, lines, strict=True):
        show.line(line)
        show.line(f"    {one['key']}")
        show.line(f"    {', '.join(one['addresses']) or 'no address'}")
        show.line(f"    {_came(one)}; {'recovery key known' if one['recovery_key'] else 'no recovery key known'}")


def _came(one: dict[str, Any]) -> str:
    """How a peer came in."""
    by = "added by hand" if one["via"] == "operator" else one["via"]
    return f"in place of {one['replaces']}, {by}" if one["replaces"] else by


def _peer_lines(listed: list[dict[str, Any]]) -> list[str]:
    """A line of headings, and one on each peer: how the link is, for how long, and why. One line if there are none."""
    rows = []
    for one in listed:
        retry = "" if one["retry_in_s"] is None else f"; next try in {show.duration(one['retry_in_s'])}"
        moved = f"{show.size(one['bytes_sent'])} sent, {show.size(one['bytes_received'])} received"
        traffic = f"; {moved}" if one["bytes_sent"] or one["bytes_received"] else ""
        long = show.duration(time.time() - one["since"]) if one["since"] else "-"
        rows.append((one["name"], one["state"], long, (one["reason"] + retry + traffic).removeprefix("; ")))
    return show.told(["peer", "state", "for", "why"], rows, empty="No peers yet; add one with `tidings peer add KEY`.")


@peer_app.command("remove")
def peer_remove(
    context: typer.Context, peer: Annotated[str, typer.Argument(metavar="KEY|NAME", help="Whom to remove.")]
) -> None:
    """Stop trusting a member: it cannot read what this node publishes from now on."""
    from node.membership import remove_peer

    name = remove_peer(open_home(context), peer)
    show.line(f"{name} is removed. What this node publishes from now on is sealed under a new key;")
    show.line("what it could read before it may have kept.")


# --------------------------------------------------------------------------------------------------------------- tasks


@task_app.command("add")
def task_add(
    context: typer.Context,
    reference: Annotated[
        str, typer.Argument(metavar="FILE.toml|TASK", help="A task file, or a task that a peer proposed.")
    ],
    backbone: Annotated[
        Path | None,
        typer.Option("--backbone", metavar="FILE.onnx", help="The frozen network of its encoder; it is copied."),
    ] = None,
) -> None:
    """Accept a task: one from a file is proposed to the peers too."""
    from node.tasks import add, missing_backbone

    task, proposed = add(open_home(context), reference, backbone)
    show.line(f"Accepted {task.name}: {task.id.hex()}")
    if (missing := missing_backbone(task)) is not None:
        show.note(f"Before anything can be published here: {missing}")
    if proposed:
        show.line(f"It is proposed to your peers, who accept it with: tidings task add {task.name}")


@task_app.command("list")
def task_list(context: typer.Context, json: Json = False) -> None:
    """Tasks accepted here, and those that peers propose."""
    from node.tasks import listing

    listed = listing(open_home(context))
    if json:
        show.as_json(listed)
        return
    rows = [[one["name"], one["state"], one["proposed_by"] or "-", one["id"]] for one in listed]
    show.table(["name", "state", "proposed by", "id"], rows, empty="No tasks yet; `tidings task add FILE.toml`.")


@task_app.command("show")
def task_show(context: typer.Context, task: TaskName, json: Json = False) -> None:
    """What a task says: columns, bounds, classes, privacy."""
    from node.tasks import describe, find_any

    found = find_any(open_home(context), task)
    if json:
        import json as json_library

        show.as_json({"id": found.id.hex(), **json_library.loads(found.canonical())})
        return
    show.line(describe(found))


# -------------------------------------------------------------------------------------------------- publish and budget


@app.command()
def publish(
    context: typer.Context,
    task: TaskName,
    data: Annotated[
        list[Path], typer.Argument(metavar="DATA...", help="Tables, NumPy or IDX files, folders of pictures.")
    ],
    epsilon: Annotated[float, typer.Option("--epsilon", metavar="E", help="Privacy to spend on this release.")],
    dataset: Annotated[str, typer.Option("--dataset", metavar="NAME", help="Whose budget it draws on.")] = "default",
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="E", help="The dataset's lifetime cap, at its first use."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option("--part", metavar="RULE", help="These rows alone: COLUMN=VALUE or hash(COLUMN)=K/N."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would leave, and spend nothing.")] = False,
    json: Json = False,
) -> None:
    """Make one private summary of data, charged to the budget. It is put into the store, to spread."""
    from fusion.parts import Part
    from node import publish as publishing
    from node.tasks import find

    chosen = Part.parse(part) if part is not None else None
    home = open_home(context)
    found = find(home, task)
    with show.progress("reading", "rows") as progress:
        if dry_run:
            preview = publishing.preview(home, found, data, epsilon, dataset, budget, progress, chosen)
        else:
            made = publishing.publish(
                home, found, data, epsilon=epsilon, dataset=dataset, cap_epsilon=budget, progress=progress, part=chosen
            )
    if dry_run:
        show.as_json(preview.to_json()) if json else show.line(preview.describe())
    elif json:
        show.as_json(made.to_json())
    else:
        show.line(made.describe())


@budget_app.callback(invoke_without_command=True)
def budget(
    context: typer.Context,
    dataset: Annotated[str | None, typer.Option("--dataset", metavar="NAME", help="This dataset alone.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw what was spent over time.")
    ] = None,
    json: Json = False,
) -> None:
    """What was spent of each dataset's privacy budget, on what, when, and what is left."""
    if context.invoked_subcommand is not None:
        return
    from node import budget as budgets

    home = look_at_home(context)
    accounts = budgets.statement(home, dataset)
    if plot is not None:
        budgets.plot(home, dataset, plot)
        show.note(f"Drew {plot}.")
    if json:
        show.as_json(accounts)
        return
    for account in accounts:
        _show_account(account)
    if not accounts:
        show.line("Nothing was spent yet." if dataset is None else f"Nothing was spent of a dataset {dataset!r} yet.")


def _show_account(account: dict[str, Any]) -> None:
    show.line(
        f"dataset {account['dataset']}: epsilon {account['spent_epsilon']:.3f} of {account['cap_epsilon']:g} spent, "
        f"{account['left_epsilon']:.3f} left, at delta {account['delta']:g}"
    )
    rows = [
        [
            one["at"],
            one["task_name"],
            one["part"] or "-",
            f"{one['epsilon']:g}",
            one["state"],
            (one["record"] or "-")[:12],
            f"{one['spent_epsilon_after']:.3f}",
        ]
        for one in account["releases"]
    ]
    columns = ["when (UTC)", "task", "part", "epsilon", "state", "record", "spent in all"]
    show.table(columns, rows, empty="  nothing was released by this copy of the ledger")
    for part in account["parts"]:
        show.line(f"  part {part['part']}: {part['spent_epsilon']:.3f} spent, {part['left_epsilon']:.3f} left")
    for change in account["changes"]:
        what = "the cap was raised" if change["what"] == "raise" else "a roll-back was accepted"
        cap, spent = change["cap_epsilon"], change["spent_epsilon"]
        show.line(f"  {change['at']} {what}: cap {cap:g}, epsilon {spent:.3f} spent in all")


@budget_app.command("raise")
def budget_raise(
    context: typer.Context,
    dataset: Annotated[str, typer.Option("--dataset", metavar="NAME", help="Whose lifetime cap.")],
    to: Annotated[float, typer.Option("--to", metavar="E", help="The new cap.")],
    yes_i_mean: Annotated[
        str | None, typer.Option("--yes-i-mean", metavar="NAME", help="The dataset once more, for scripts.")
    ] = None,
) -> None:
    """Raise the lifetime cap of a dataset: for ever, on record, and told to peers."""
    from node.budget import raise_cap
    from node.errors import UsageError

    home = open_home(context)
    if yes_i_mean is None:
        show.note(f"Everybody with a row in {dataset} gets less privacy than was promised, and this cannot be undone.")
        yes_i_mean = typer.prompt("Type the name of the dataset to go on", err=True)
    if yes_i_mean != dataset:
        raise UsageError(f"{yes_i_mean!r} is not the name of the dataset, so its budget stays as it is.")
    raise_cap(home, dataset, to)
    show.line(f"The lifetime budget of dataset {dataset} is epsilon {to:g} now. Peers are told.")


@budget_app.command("accept-rollback")
def budget_accept_rollback(context: typer.Context, json: Json = False) -> None:
    """After a restore from an old copy: charge what peers know was spent since, and go on."""
    from node.budget import accept_rollback
    from node.publish import strays

    home = open_home(context)
    accounts = accept_rollback(home)
    if json:
        show.as_json(accounts)
        return
    for one in accounts:
        if one["dataset"] is None:
            show.line("A dataset that this copy has not used yet: what was spent counts once it is.")
        else:
            left, spent = one["left_epsilon"], one["spent_epsilon"]
            show.line(f"dataset {one['dataset']}: epsilon {spent:.3f} counts as spent now, {left:.3f} is left")
    show.line("The ledger can be used again. Peers are told." if accounts else "There is no roll-back to accept.")
    for stray in strays(home, home.ledger()) if accounts else ():
        shown = stray.id.hex()[:12]
        show.line(
            f"Record {shown} is of the lost copy: `tidings withdraw {shown}` before its rows are published again."
        )


@app.command()
def audit(
    context: typer.Context,
    task: TaskName,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", metavar="E", help="The claim to check; else the task's maximum.")
    ] = None,
    runs: Annotated[int | None, typer.Option("--runs", metavar="N", help="Releases of each of two files.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw what was measured.")] = None,
    json: Json = False,
) -> None:
    """Measure the privacy of this node's own mechanism. On made-up data, beside what it claims; spends nothing."""
    from fusion.audit import audit as measure
    from fusion.audit import draw
    from node.tasks import find

    found = find(look_at_home(context), task)
    with show.progress("auditing", "releases") as progress:
        measured = measure(found, epsilon, runs, progress=progress)
    show.as_json(measured.to_json()) if json else show.line(measured.describe())
    if plot is not None and not draw(measured, plot):
        show.note("No picture was drawn: install matplotlib (the extra `plot`) for one.")
    if measured.verdict != "holds":
        raise typer.Exit(1)


@app.command()
def withdraw(
    context: typer.Context,
    record: Annotated[str, typer.Argument(metavar="RECORD", help="The beginning of a record's id.")],
) -> None:
    """Take a summary or a shared model of this node back. Every node that hears of it goes on without it."""
    from node.publish import withdraw as take_back
    from node.records import Kind

    taken = take_back(open_home(context), record)
    if taken.header.kind is Kind.MODEL:
        show.line(f"Record {taken.id.hex()[:12]} is withdrawn. Model files written from it stay where they are.")
        return
    show.line(f"Record {taken.id.hex()[:12]} is withdrawn. Models made from it before stay where they are;")
    show.line("the privacy it cost stays spent.")


# --------------------------------------------------------------------------------------------------- serve and status


@app.command()
def serve(
    context: typer.Context,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="Overrides the address given at init.")
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option("--bandwidth", metavar="RATE", help="Gossip sends at most so much in total: 64kbit/s, 2MB/s."),
    ] = None,
    peer_bandwidth: Annotated[
        str | None,
        typer.Option("--peer-bandwidth", metavar="RATE", help="Gossip sends at most so much to each peer."),
    ] = None,
    queries_per_hour: Annotated[
        int, typer.Option("--queries-per-hour", metavar="N", min=1, help="Models that each key may ask for.")
    ] = 120,
    fusions: Annotated[
        int, typer.Option("--fusions", metavar="N", min=1, help="Models that are fused at a time for those who ask.")
    ] = 1,
    log_format: LogFormat = "text",
    log_level: LogLevel = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", metavar="[HOST:]PORT", help="Answer Prometheus there, on this machine only."),
    ] = None,
    metrics_exposed: Annotated[
        bool, typer.Option("--metrics-exposed", help="Let --metrics listen on an address that others reach.")
    ] = False,
) -> None:
    """Run the node until stopped (Ctrl-C)."""
    from node.bandwidth import Bandwidth, parse_rate
    from node.config import QuerySettings
    from node.metrics import parse_listen
    from node.peers import check_address
    from node.serve import ServeOptions, serve_until_stopped

    address = check_address(listen) if listen else None
    limits = Bandwidth(
        parse_rate(bandwidth) if bandwidth else None,
        parse_rate(peer_bandwidth, "--peer-bandwidth") if peer_bandwidth else None,
    )
    queries = QuerySettings(per_hour=queries_per_hour, fusions=fusions)
    level = log_level or ("debug" if context.meta["debug"] else "info")
    metrics_at = parse_listen(metrics, exposed=metrics_exposed) if metrics else None
    serve_until_stopped(open_home(context), ServeOptions(address, limits, queries, log_format, level, metrics_at))


@app.command()
def status(context: typer.Context, json: Json = False) -> None:
    """Peers, links, what is held, and what is stuck and why."""
    from node.status import status as read_status

    state = read_status(look_at_home(context))
    if json:
        show.as_json(state)
        return
    node = state["node"]
    where = f"listening on {node['listen']}" if node["listen"] else "dialing out only"
    show.line(
        f"{node['name']} · {'running, ' + where if node['serving'] else 'not running'} · "
        f"{node['records']} {'record' if node['records'] == 1 else 'records'}"
    )
    show.line(node["key"])
    for line in _peer_lines(state["peers"]):
        show.line(line)
    for task in state["tasks"]:
        show.line(f"{task['name']}: {show.summaries(task['summaries'])} ready to fuse")
        for stuck in task["stuck"]:
            show.line(f"  {stuck['origin']}: {stuck['reason']}")
        for model in task["models"]:
            what = f"made of {show.summaries(model['summaries'])}" if not model["reason"] else model["reason"]
            show.line(f"  model shared by {model['origin']}, {model['created']} UTC: {what}")
    for account in state["budget"]:
        spent = f"epsilon {account['spent_epsilon']:.3f} of {account['cap_epsilon']:g} spent"
        show.line(f"budget of {account['dataset']}: {spent}")
    for notice in state["notices"]:
        show.line(show.fitted(f"WARNING  {notice['origin']}: ", notice["reason"]))


@app.command()
def records(
    context: typer.Context,
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Records of this task alone.")] = None,
    json: Json = False,
) -> None:
    """Every record held here, and why one cannot be used yet."""
    from node.status import records as read_records
    from node.tasks import find_any

    home = look_at_home(context)
    listed = read_records(home, find_any(home, task).id if task else None)
    if json:
        show.as_json(listed)
        return
    rows = [
        [
            one["id"][:12],
            one["kind"],
            one["task"][:24],
            one["origin"],
            show.size(one["bytes"]),
            one["state"],
            one["reason"],
        ]
        for one in listed
    ]
    show.table(["id", "kind", "task", "origin", "size", "state", "why"], rows, empty="No records yet.")


# --------------------------------------------------------------------------------------------------------------- demo


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the results go.")] = Path("demo-out"),
    draws: Annotated[int, typer.Option("--draws", metavar="N", min=0, help="Also N draws of noise, in process.")] = 0,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="The heart example, if it is elsewhere.")
    ] = None,
    json: Json = False,
) -> None:
    """The whole thing on this machine, with real hospital data. One node process per hospital."""
    from node.demo import run_demo

    run_demo(out, draws, data, as_json=json)
