"""Adult over many nodes, however the rows lie: ours beside federated averaging and one-shot ensembles.

Settings: IID, Dirichlet 0.1 and 0.01, one class each; 10, 50 and 100 nodes; epsilon 0.5, 1, 3 and 8 at every node. All
methods get the same rows of the same seven columns (benchmarks/tasks/adult.toml): the peers as one-hot categories and
numbers scaled by the same public bounds, for a logistic regression by SGD. Their rates did best on the last fifth of
adult.data held out (IID and Dirichlet 0.1, 10 nodes, 10 rounds), no test row was looked at: 1 of 0.1, 0.3 and 1 in
batches of 32; for private nodes 4 of 0.1, 0.5, 2, 4 and 8, clipped to norm 1, with 128 to 256 rows a step.

The partition makes no difference to ours: without noise all of them give the same tensors, byte for byte, which is
shown (A7).
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from torch import nn

from benchmarks import adult, federated
from benchmarks.federated import PrivateSgd, Rows, Sgd
from benchmarks.partitions import PARTITIONS, Ints
from benchmarks.peers import environment
from benchmarks.plotting import Series, pyplot
from benchmarks.progress import Progress
from fusion.artifact import Model
from fusion.dataset import Batch, read_batches
from fusion.encoders import encoder_for
from fusion.fuse import Contribution
from fusion.heads import forward
from fusion.ledger import Ledger
from fusion.model import build_model
from fusion.release import Measured, Summary, exact_summary, measure, noisy_summary, release
from fusion.task import Task
from node.tasks import read_file

HEADING = "## Adult over many nodes, beside peers that train\n\n"
BASE_PARTITION, BASE_NODES, BASE_EPSILON = "Dirichlet 0.1", 50, 1.0
SGD, ONE_SHOT = Sgd(learning_rate=1.0), Sgd(learning_rate=1.0, epochs=5)
PRIVATE = {"learning_rate": 4.0, "clip_norm": 1.0, "batch": 128}
OURS = "ours"
DP_FEDAVG = "DP-FedAvg"


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    rows: int | None
    partitions: tuple[str, ...]
    nodes: tuple[int, ...]
    epsilons: tuple[float, ...]
    rounds: tuple[int, int]
    draws: int
    peer_draws: int

    @property
    def base_nodes(self) -> int:
        return BASE_NODES if BASE_NODES in self.nodes else self.nodes[0]


FULL = Sizes(None, tuple(PARTITIONS), (10, 50, 100), (0.5, 1.0, 3.0, 8.0), (10, 30), 10, 3)
QUICK = Sizes(6_000, ("Dirichlet 0.1", "one class each"), (10,), (1.0,), (1, 2), 3, 1)


@dataclass(frozen=True)
class Setting:
    """Where the rows lie, and what each node may spend."""

    partition: str
    nodes: int
    epsilon: float


@dataclass(frozen=True)
class Result:
    """One method in one setting: accuracies over draws, bytes that all nodes send and receive, CPU seconds of a run."""

    method: str
    scores: tuple[float, ...]
    moved: float = 0.0
    took_s: float = 0.0

    @property
    def shown(self) -> str:
        spread = f" ± {100 * stdev(self.scores):.1f}" if len(self.scores) > 1 else ""
        return f"{100 * fmean(self.scores):.1f}{spread}"


Results = dict[Setting, dict[str, Result]]


@dataclass(frozen=True)
class Data:
    """All training rows and all test rows, as ours and as the peers take them."""

    task: Task
    train: Batch
    test_x: np.ndarray  # encoded
    test_label: np.ndarray
    peers: Rows
    peers_test: Rows


def run(out: Path) -> str:
    """The section of RESULTS.md; the picture goes into `out`."""
    return _section(FULL, out)


def quick(out: Path) -> str:
    """Some rows, one size of coalition, two rounds, three draws."""
    return _section(QUICK, out)


def _section(sizes: Sizes, out: Path) -> str:
    if not all((adult.DATA / name).is_file() for name in ("adult.data", "adult.test")):
        return HEADING + "Skipped: adult.data and adult.test were not found; put them into `$TIDINGS_DATA/adult`.\n"
    torch.set_num_threads(1)
    tell = Progress("federated_adult")
    data = _data(sizes)
    digests = _digests(data, sizes)
    tell(f"without noise, {len(digests)} partitions give {len(set(digests.values()))} model(s)")
    results: Results = {}
    for setting in _settings(sizes):
        results[setting] = {result.method: result for result in _results(data, setting, sizes)}
        tell(f"{setting}: " + "; ".join(f"{name} {result.shown}" for name, result in results[setting].items()))
    pooled = _pooled(data)
    picture = _draw(results, pooled, sizes, out / "federated_adult.png")
    return HEADING + _text(data, results, pooled, digests, sizes) + picture


def _settings(sizes: Sizes) -> list[Setting]:
    """Every partition and number of nodes at the base epsilon, and every epsilon at the base partition."""
    spread = [Setting(name, nodes, BASE_EPSILON) for name in sizes.partitions for nodes in sizes.nodes]
    return spread + [
        Setting(BASE_PARTITION, nodes, epsilon)
        for nodes in sizes.nodes
        for epsilon in sizes.epsilons
        if epsilon != BASE_EPSILON
    ]


# --- data -------------------------------------------------------------------------------------------------------


def _data(sizes: Sizes) -> Data:
    """The task with the largest epsilon of the table allowed."""
    task = read_file(adult.HERE / "tasks" / "adult.toml")
    task = replace(task, privacy=replace(task.privacy, max_epsilon=max(8.0, *sizes.epsilons)))
    train, test = (_one_batch(task, adult.DATA / name, sizes.rows) for name in ("adult.data", "adult.test"))
    assert train.label is not None
    assert test.label is not None
    return Data(
        task,
        train,
        encoder_for(task).encode(test),
        test.label,
        federated.to_rows(adult.one_hot(task, train), train.label),
        federated.to_rows(adult.one_hot(task, test), test.label),
    )


def _one_batch(task: Task, source: Path, rows: int | None) -> Batch:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "rows.csv"
        path.write_text("\n".join(adult.rows_of(source.name)[:rows]) + "\n", encoding="ascii")
        batches = list(read_batches([path], task))
    numbers = {name: np.concatenate([one.numbers[name] for one in batches]) for name in batches[0].numbers}
    categories = {name: np.concatenate([one.categories[name] for one in batches]) for name in batches[0].categories}
    label = np.concatenate([np.asarray(one.label) for one in batches])
    return Batch(numbers, categories, label, len(label))


def _of(batch: Batch, indices: Ints) -> Batch:
    """Those rows of the batch."""
    return Batch(
        {name: values[indices] for name, values in batch.numbers.items()},
        {name: values[indices] for name, values in batch.categories.items()},
        np.asarray(batch.label)[indices],
        len(indices),
    )


def _dealt(data: Data, partition: str, nodes: int) -> list[Ints]:
    return PARTITIONS[partition](np.asarray(data.train.label), nodes)


# --- ours -------------------------------------------------------------------------------------------------------


def _digests(data: Data, sizes: Sizes) -> dict[str, str]:
    """The hash of the fused tensors without noise, by partition."""
    found = {}
    for name in sizes.partitions:
        for nodes in sizes.nodes:
            summaries = [exact_summary(data.task, [_of(data.train, part)]) for part in _dealt(data, name, nodes)]
            found[f"{name}, {nodes} nodes"] = _tensor_digest(_fused(data.task, summaries))
    found["all rows in one place"] = _tensor_digest(_fused(data.task, [exact_summary(data.task, [data.train])]))
    return found


def _tensor_digest(model: Model) -> str:
    hasher = hashlib.sha256()
    for name in sorted(model.tensors):
        hasher.update(name.encode() + model.tensors[name].tobytes())
    return hasher.hexdigest()


def _fused(task: Task, summaries: Sequence[Summary]) -> Model:
    ids = [number.to_bytes(32, "big") for number in range(len(summaries))]
    return build_model(task, [Contribution(*one) for one in zip(ids, ids, summaries, strict=True)])


def _ours(data: Data, setting: Setting, draws: int) -> Result:
    """Noise at every node; head and lambda chosen by the software from the noisy summaries alone."""
    started = time.process_time()
    parts = _dealt(data, setting.partition, setting.nodes)
    measured = [measure(data.task, [_of(data.train, part)]) for part in parts]
    once_s = time.process_time() - started
    scores = [_private_accuracy(data, measured, setting.epsilon) for _ in range(draws)]
    took_s = (time.process_time() - started - once_s) / draws + once_s
    return Result(OURS, tuple(scores), len(parts) * _summary_bytes(data, setting.epsilon), took_s)


def _private_accuracy(data: Data, measured: Sequence[Measured], epsilon: float) -> float:
    model = _fused(data.task, [noisy_summary(data.task, sums, epsilon) for sums in measured])
    return float((forward(model.layers, data.test_x).argmax(axis=1) == data.test_label).mean())


def _summary_bytes(data: Data, epsilon: float) -> int:
    """Of one real release at that epsilon."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "rows.csv"
        path.write_text("\n".join(adult.rows_of("adult.data")[:650]) + "\n", encoding="ascii")
        ledger = Ledger(Path(scratch) / "ledger.db")
        return len(release(data.task, [path], epsilon=epsilon, ledger=ledger, dataset="adult", cap_epsilon=8.0).payload)


# --- peers ------------------------------------------------------------------------------------------------------


def _pooled(data: Data) -> dict[str, float]:
    """scikit-learn on all rows in one place, no privacy."""
    table = {
        "train": data.peers.x.numpy(),
        "train_label": data.peers.y.numpy(),
        "test": data.peers_test.x.numpy(),
        "test_label": data.peers_test.y.numpy(),
    }
    jobs = {"logistic regression": {"model": "no privacy"}, "ridge": {"model": "ridge, no privacy"}}
    with tempfile.TemporaryDirectory() as scratch:
        found = environment.accuracies(table, list(jobs.values()), BASE_EPSILON, 1, Path(scratch))
    return {name: scores[0] for name, scores in zip(jobs, found, strict=True)}


def _results(data: Data, setting: Setting, sizes: Sizes) -> Iterator[Result]:
    """Ours always; DP-FedAvg for more rounds at the base number of nodes only; no peer without privacy twice."""
    yield _ours(data, setting, sizes.draws)
    nodes = [Rows(data.peers.x[part], data.peers.y[part]) for part in _dealt(data, setting.partition, setting.nodes)]
    few, many = sizes.rounds
    trained = partial(_over_draws, data, nodes, sizes.peer_draws)
    yield trained(f"{DP_FEDAVG}, {few} rounds", partial(_dp_fedavg, setting.epsilon, few))
    if setting.nodes == sizes.base_nodes:
        yield trained(f"{DP_FEDAVG}, {many} rounds", partial(_dp_fedavg, setting.epsilon, many))
    yield from _private_one_shot(data, nodes, setting.epsilon, sizes.peer_draws)
    if setting.epsilon == BASE_EPSILON:
        yield from _fedavg(data, nodes, sizes.rounds)
        yield from _one_shot(data, nodes)


Trained = Callable[[Data, Sequence[Rows], int], tuple[float, float]]


def _over_draws(data: Data, nodes: Sequence[Rows], draws: int, method: str, train: Trained) -> Result:
    started = time.process_time()
    found = [train(data, nodes, seed) for seed in range(draws)]
    took_s = (time.process_time() - started) / draws
    return Result(method, tuple(score for score, _ in found), found[0][1], took_s)


def _new_model(data: Data) -> federated.NewModel:
    return federated.seeded(partial(nn.Linear, data.peers.x.shape[1], 2), 0)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _dp_fedavg(epsilon: float, rounds: int, data: Data, nodes: Sequence[Rows], seed: int) -> tuple[float, float]:
    private = PrivateSgd(epsilon, data.task.privacy.delta, **PRIVATE)  # type: ignore[arg-type]
    *_, model = federated.dp_fedavg(_new_model(data), nodes, rounds, private, _generator(seed))
    return federated.accuracy(model, data.peers_test), rounds * federated.round_bytes(model, len(nodes))


def _fedavg(data: Data, nodes: Sequence[Rows], at: Sequence[int]) -> Iterator[Result]:
    started = time.process_time()
    for done, model in enumerate(federated.fedavg(_new_model(data), nodes, at[-1], SGD, _generator()), start=1):
        if done in at:
            score, took_s = federated.accuracy(model, data.peers_test), time.process_time() - started
            moved = done * federated.round_bytes(model, len(nodes))
            yield Result(f"FedAvg, {done} rounds, no privacy", (score,), moved, took_s)


def _one_shot(data: Data, nodes: Sequence[Rows]) -> Iterator[Result]:
    started = time.process_time()
    models = federated.one_shot(_new_model(data), nodes, ONE_SHOT, _generator())
    moved, took_s = len(nodes) * federated.model_bytes(models[0]), time.process_time() - started
    test = data.peers_test
    alone = fmean(federated.accuracy(model, test) for model in models)
    averaged = federated.accuracy(federated.averaged(models, nodes), test)
    weighted = federated.ensemble_accuracy(models, test, federated.counts(nodes, 2))
    yield Result("single node, no privacy", (alone,), 0.0, took_s / len(nodes))
    yield Result("one-shot averaging, no privacy", (averaged,), moved, took_s)
    yield Result("one-shot ensemble, no privacy", (federated.ensemble_accuracy(models, test),), moved, took_s)
    yield Result("one-shot ensemble by label counts, no privacy", (weighted,), moved, took_s)


def _private_one_shot(data: Data, nodes: Sequence[Rows], epsilon: float, draws: int) -> Iterator[Result]:
    """A part of epsilon buys the histogram of labels."""
    share = epsilon * federated.HISTOGRAM_SHARE
    private = PrivateSgd(epsilon - share, data.task.privacy.delta, epochs=ONE_SHOT.epochs, **PRIVATE)  # type: ignore[arg-type]
    started = time.process_time()
    plain, weighted = [], []
    for seed in range(draws):
        models = federated.private_one_shot(_new_model(data), nodes, private, _generator(seed))
        counts = federated.private_counts(nodes, 2, share, _generator(seed))
        plain.append(federated.ensemble_accuracy(models, data.peers_test))
        weighted.append(federated.ensemble_accuracy(models, data.peers_test, counts))
    moved, took_s = len(nodes) * federated.model_bytes(models[0]), (time.process_time() - started) / draws
    yield Result("one-shot DP ensemble", tuple(plain), moved, took_s)
    yield Result("one-shot DP ensemble by a DP histogram", tuple(weighted), moved, took_s)


# --- report -----------------------------------------------------------------------------------------------------


def _text(data: Data, results: Results, pooled: dict[str, float], digests: dict[str, str], sizes: Sizes) -> str:
    at_one = {setting: found for setting, found in results.items() if setting.epsilon == BASE_EPSILON}
    base = results[Setting(BASE_PARTITION, sizes.base_nodes, BASE_EPSILON)]
    return (
        f"Accuracy in percent on adult.test ({len(data.test_label):,} rows) after training on {len(data.train):,} rows "
        f"of seven columns; delta {data.task.privacy.delta:g}. Ours: mean ± standard deviation over {sizes.draws} "
        f"draws of the noise; private peers over {sizes.peer_draws} (seeds from 0); the others are one run of seed 0. "
        "A node's epsilon is for everything it sends in a run: DP-FedAvg has one noise multiplier for all its rounds "
        "(Opacus, RDP accountant). Nodes without rows take no part. Pooled rows, no privacy, scikit-learn: "
        f"{', '.join(f'{name} {100 * score:.1f}' for name, score in pooled.items())}.\n\n"
        + "".join(_partition_table(at_one, nodes, sizes) for nodes in sizes.nodes)
        + _epsilon_table(results, sizes)
        + _cost_table(base, sizes)
        + _invariance_text(digests)
    )


def _partition_table(results: Results, nodes: int, sizes: Sizes) -> str:
    columns = [results[Setting(name, nodes, BASE_EPSILON)] for name in sizes.partitions]
    rows = [f"| {method} | {' | '.join(column[method].shown for column in columns)} |" for method in columns[0]]
    return (
        f"{nodes} nodes, epsilon {BASE_EPSILON:g} at each node that is private:\n\n| method | "
        f"{' | '.join(sizes.partitions)} |\n| --- |{' --- |' * len(columns)}\n" + "\n".join(rows) + "\n\n"
    )


def _epsilon_table(results: Results, sizes: Sizes) -> str:
    rows = []
    for nodes in sizes.nodes:
        found = [results[Setting(BASE_PARTITION, nodes, epsilon)] for epsilon in sorted(sizes.epsilons)]
        rows += [
            f"| {nodes} | {method} | {' | '.join(one[method].shown for one in found)} |"
            for method in found[0]
            if all(method in other for other in found)
        ]
    heads = " | ".join(f"epsilon {epsilon:g}" for epsilon in sorted(sizes.epsilons))
    return (
        f"By epsilon, {BASE_PARTITION}:\n\n"
        f"| nodes | method | {heads} |\n| --- | --- |{' --- |' * len(sizes.epsilons)}\n" + "\n".join(rows) + "\n\n"
    )


def _cost_table(base: dict[str, Result], sizes: Sizes) -> str:
    rows = [
        f"| {name} | {one.shown} | {f'{one.moved / 1e3:,.0f}' if one.moved else 'none'} | {one.took_s:.1f} |"
        for name, one in base.items()
    ]
    return (
        f"Cost, {BASE_PARTITION}, {sizes.base_nodes} nodes, epsilon {BASE_EPSILON:g}. Kilobytes: for ours, a summary "
        "of every node, as it was released; for the peers, float32 weights without any framing. Seconds: CPU of all "
        "nodes together in one process; for ours, measuring, exact noise, fusing and choosing.\n\n"
        "| method | accuracy | kB moved | CPU seconds |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
    )


def _invariance_text(digests: dict[str, str]) -> str:
    """A7."""
    distinct = sorted(set(digests.values()))
    verdict = "one and the same" if len(distinct) == 1 else f"{len(distinct)} different ones: the target is missed"
    rows = "\n".join(f"| {name} | `{digest[:16]}` |" for name, digest in digests.items())
    return (
        f"A7: the fused tensors without noise, byte for byte, are {verdict} in all {len(digests)} cases.\n\n"
        f"| rows | SHA-256 of the tensors begins |\n| --- | --- |\n{rows}\n"
    )


# --- picture ----------------------------------------------------------------------------------------------------

STYLES = {
    OURS: Series("ours", "#0b7a75", "o"),
    "FedAvg, {many} rounds, no privacy": Series("FedAvg, no privacy", "#3d5a80", "s"),
    "DP-FedAvg, {many} rounds": Series("DP-FedAvg", "#c8553d", "^"),
    "one-shot DP ensemble by a DP histogram": Series("one-shot DP ensemble by histogram", "#9c6b98", "v"),
    "one-shot averaging, no privacy": Series("one-shot averaging, no privacy", "#9aa5b1", "D"),
    "single node, no privacy": Series("single node, no privacy", "#c9b458", "x"),
}


def _draw(results: Results, pooled: dict[str, float], sizes: Sizes, path: Path) -> str:
    """Accuracy by partition, by epsilon, by bytes; the line of Markdown that shows it."""
    plt = pyplot()
    if plt is None:
        return ""
    styles = {name.format(many=sizes.rounds[-1]): style for name, style in STYLES.items()}
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    at = partial(Setting, nodes=sizes.base_nodes, epsilon=BASE_EPSILON)
    for method, style in styles.items():
        style.line(axes[0], sizes.partitions, [results[at(name)][method].scores for name in sizes.partitions])
        epsilons = [
            epsilon
            for epsilon in sorted(sizes.epsilons)
            if method in results[Setting(BASE_PARTITION, sizes.base_nodes, epsilon)]
        ]
        if len(epsilons) == len(sizes.epsilons):
            found = [results[Setting(BASE_PARTITION, sizes.base_nodes, epsilon)][method] for epsilon in epsilons]
            style.line(axes[1], [f"{epsilon:g}" for epsilon in epsilons], [one.scores for one in found])
        base = results[at(BASE_PARTITION)][method]
        if base.moved:
            style.line(axes[2], [base.moved / 1e3], [base.scores])
    axes[2].set_xscale("log")
    for axis, title, label in zip(
        axes,
        (f"epsilon {BASE_EPSILON:g}", BASE_PARTITION, f"{BASE_PARTITION}, epsilon {BASE_EPSILON:g}"),
        ("where the rows lie", "epsilon at each node", "kilobytes moved by all nodes"),
        strict=True,
    ):
        axis.axhline(100 * pooled["logistic regression"], color="black", linewidth=0.8, linestyle=":")
        axis.set_title(f"{sizes.base_nodes} nodes, {title}", fontsize=10)
        axis.set_xlabel(label, fontsize=9)
        axis.set_ylabel("accuracy in percent", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    figure.suptitle("Adult: ours and peers (dotted: scikit-learn on pooled rows, no privacy)", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return f"\n![Accuracy on Adult by partition, epsilon and bytes](plots/{path.name})\n"
