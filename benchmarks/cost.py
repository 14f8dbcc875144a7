"""P6: what a node costs to have around: start-up, memory and CPU of `tidings --help` and of an idle `serve`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

RUNS = 11
IDLE_S = 20.0
PEERS = 3


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    return _section(IDLE_S)


def quick(_out: Path) -> str:
    """A short idle time."""
    return _section(3.0)


def _section(idle_s: float) -> str:
    help_s = median(_timed([sys.executable, "-m", "node", "--help"]) for _ in range(RUNS))
    bare_s = median(_timed([sys.executable, "-c", "pass"]) for _ in range(RUNS))
    ready_s, rss_mb, cpu = _idle_node(idle_s)
    return (
        "## P6: cost of a node\n\n"
        "| what | measured | target |\n| --- | --- | --- |\n"
        f"| `tidings --help`, median of {RUNS} | {help_s:.2f} s (a bare `python -c pass`: {bare_s:.2f} s) | < 0.3 s |\n"
        f"| `serve` until it listens | {ready_s:.2f} s | < 1 s |\n"
        f"| resident memory, idle, linked with {PEERS} peers | {rss_mb:.0f} MB | < 80 MB |\n"
        f"| CPU over {idle_s:.0f} idle seconds | {100 * cpu:.2f} % | < 1 % |\n"
    )


def _timed(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _idle_node(idle_s: float) -> tuple[float, float, float]:
    """Seconds until ready, MB of resident memory, share of one core, of the hub of a small star."""
    with tempfile.TemporaryDirectory() as scratch:
        homes = [Path(scratch) / f"n{number}" for number in range(PEERS + 1)]
        keys = [_tidings(home, "init", "--name", home.name).strip() for home in homes]
        for key, home in zip(keys[1:], homes[1:], strict=True):
            _tidings(homes[0], "peer", "add", key, "--name", home.name)
        started = time.perf_counter()
        processes = [_serve(homes[0], "--listen", "127.0.0.1:0")]
        address = _first_line(processes[0]).split("listens on ")[1].split()[0].rstrip(".")
        ready_s = time.perf_counter() - started
        try:
            for home in homes[1:]:
                _tidings(home, "peer", "add", keys[0], "--name", "hub", "--address", address)
                processes.append(_serve(home))
                _first_line(processes[-1])
            while _tidings(homes[0], "status", "--json").count('"state": "linked"') < PEERS:
                time.sleep(0.5)
            before = _cpu_s(processes[0].pid)
            time.sleep(idle_s)
            return ready_s, _rss_mb(processes[0].pid), (_cpu_s(processes[0].pid) - before) / idle_s
        finally:
            for process in processes:
                process.terminate()
                process.wait()


def _tidings(home: Path, *words: str) -> str:
    command = [sys.executable, "-m", "node", "--home", str(home), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _serve(home: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "node", "--home", str(home), "serve", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1000
