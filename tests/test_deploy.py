"""The examples of deployment: what they start does start, and the unit is as closed as its README says."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crypto.keystore import LEAST
from node.home import Home

DEPLOY = Path(__file__).parent.parent / "deploy"
UNIT = DEPLOY / "tidings.service"
PASSPHRASE = "nine grey herons over the estuary"  # noqa: S105
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")


def directive(name: str) -> str:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)[-1]


def instruction(name: str) -> list[str]:
    """The words of an instruction of the container file in its JSON form."""
    text = (DEPLOY / "Containerfile").read_text()
    words: list[str] = json.loads(re.findall(rf"^{name} .*?(\[.*\])$", text, re.MULTILINE)[-1])
    return words


@contextmanager
def started(words: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "node", *words], env=os.environ | environment, stderr=-1)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@needs_systemd
def test_the_unit_is_correct(tmp_path: Path) -> None:
    here = tmp_path / "tidings.service"
    here.write_text(UNIT.read_text().replace("/opt/tidings/bin/tidings", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(here)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_unit_is_as_closed_as_its_readme_says() -> None:
    words = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=15", str(UNIT)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2_000:]


def test_what_the_unit_starts_tells_systemd_that_it_is_ready_and_stops_in_time(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "passphrase").write_text(PASSPHRASE + "\n")
    (credentials / "passphrase").chmod(0o440)  # as systemd does
    Home.init(tmp_path / "home", "north", "127.0.0.1:0", lambda: PASSPHRASE, LEAST).store.close()
    command = directive("ExecStart").replace("%d", str(credentials)).replace("/var/lib/tidings", str(tmp_path / "home"))
    binary, *words = shlex.split(command)
    words[words.index("9410")] = "0"
    assert binary.endswith("/tidings")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "CREDENTIALS_DIRECTORY": str(credentials)}
        with started(words, **told) as process:
            while manager.recv(64) != b"READY=1":
                pass
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert time.monotonic() - began < float(directive("TimeoutStopSec")) / 2


def test_what_the_container_starts_passes_its_own_health_check(tmp_path: Path) -> None:
    Home.init(tmp_path / "home", "north", "127.0.0.1:0").store.close()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    words = [port if word == "9410" else word for word in instruction("CMD")]
    check = [word.replace("9410", port) for word in instruction("HEALTHCHECK")]
    assert instruction("ENTRYPOINT") == ["tidings"]
    assert check[0] == "python"
    with started(words, TIDINGS_HOME=str(tmp_path / "home")) as process:
        deadline = time.monotonic() + 30
        while subprocess.run([sys.executable, *check[1:]], stderr=subprocess.DEVNULL).returncode != 0:
            assert time.monotonic() < deadline
        process.terminate()
        assert process.wait(10) == 0
    assert subprocess.run([sys.executable, *check[1:]], stderr=subprocess.DEVNULL).returncode != 0


def test_a_home_is_made_in_the_directory_that_an_administrator_made_for_the_service(tmp_path: Path) -> None:
    place = tmp_path / "tidings"  # of its user, unlike what it is in; or the root of a volume
    place.mkdir(mode=0o755)
    before = place.stat().st_ino
    home = Home.init(place, "north", None)
    incarnation = home.store.incarnation
    home.store.close()
    assert (place.stat().st_ino, place.stat().st_mode & 0o777) == (before, 0o700)
    assert {one.name for one in place.iterdir()} == {"author.lock", "keystore.json", "node.db", "node.json"}
    assert list(tmp_path.iterdir()) == [place]
    reopened = Home.open(place)
    assert reopened.store.incarnation == incarnation
    reopened.store.close()


def test_a_home_that_cannot_be_finished_leaves_that_directory_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name == "keystore.json" and self.parent.name.startswith(".tidings-init-"):
            raise OSError(28, "No space left on device")
        return move(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        Home.init(tmp_path, "north", None)
    assert list(tmp_path.iterdir()) == []
