"""`tidings simulate`: a coalition on paper. Needs no home; thin like `node.cli`, which this command is part of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node import show
from node.cli_options import Json

app = typer.Typer(rich_markup_mode=None)


@app.command()
def simulate(
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", help="How many; all trust each other.")] = 16,
    loss: Annotated[float, typer.Option("--loss", metavar="P", help="Share of frames that vanish, 0 to 0.9.")] = 0.0,
    latency: Annotated[float, typer.Option("--latency", metavar="MS", help="Mean of the links, one way.")] = 50.0,
    bandwidth: Annotated[
        str | None, typer.Option("--bandwidth", metavar="RATE", help="Per link and direction: 64kbit/s, 2MB/s.")
    ] = None,
    degree: Annotated[int, typer.Option("--degree", metavar="D", help="Addresses that each node has.")] = 4,
    records: Annotated[
        int | None, typer.Option("--records", metavar="R", help="How many are published; else one by each node.")
    ] = None,
    body_size: Annotated[
        str, typer.Option("--body-size", metavar="SIZE", help="Of each record: 2000, 300kB, 5MB.")
    ] = "100kB",
    cut_every: Annotated[
        float | None, typer.Option("--cut-every", metavar="SECONDS", help="How long a link lives, on average.")
    ] = None,
    partition: Annotated[
        float, typer.Option("--partition", metavar="MINUTES", help="Two halves that do not reach each other at first.")
    ] = 0.0,
    churn: Annotated[
        str | None, typer.Option("--churn", metavar="UP,DOWN", help="Minutes that a node runs and rests, on average.")
    ] = None,
    hours: Annotated[float, typer.Option("--hours", metavar="H", help="Simulate so long at most.")] = 24.0,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="The same seed shows the same again.")] = 1,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw it.")] = None,
    json: Json = False,
) -> None:
    """A coalition on paper, before anybody deploys. When does everybody have everything, at what cost?

    The exit code is 1 if it never happens.
    """
    from node.bandwidth import parse_rate
    from node.contributions import check_plot
    from node.simulation import report
    from node.simulation import simulate as study

    mean_up_s, mean_down_s = study.parse_churn(churn) if churn else (None, 600.0)
    plan = study.Plan(
        nodes=nodes,
        degree=degree,
        records=records,
        body_bytes=study.parse_bytes(body_size),
        loss=loss,
        latency_s=latency / 1_000,
        bandwidth=parse_rate(bandwidth) if bandwidth else None,
        cut_every_s=cut_every,
        partition_s=partition * 60,
        mean_up_s=mean_up_s,
        mean_down_s=mean_down_s,
        seed=seed,
        hours=hours,
    )
    if plot is not None:
        check_plot(plot)
    with show.moving("simulating") as on_progress:
        outcome = study.simulate(plan, on_progress)
    if plot is not None:
        report.draw(outcome, plot)
        show.note(f"Drew {plot}.")
    if json:
        show.as_json(outcome.to_json())
    else:
        report.print_outcome(outcome)
    if not outcome.is_complete:
        raise typer.Exit(1)
