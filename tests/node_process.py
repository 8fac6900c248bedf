"""A node in a process of its own, whose judge is the stand-in. It can be killed, and started again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from components import free_port

START_SECONDS = 60.0
# Nodes are forked from a process that has imported everything: each would need a second for that.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["cspine.node.node", "cspine.node.supervise", "cspine.reports.atomic"])


def main(node: NodeProcess) -> None:
    from cspine.node import node as module
    from cspine.node.settings import load_settings
    from cspine.node.supervise import judge
    from cspine.node.work import Work
    from node_work_factory import fake_child

    log = os.open(node.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    command = fake_child(node.folder / "child", seconds=node.seconds)
    if node.host:
        socket.gethostname = lambda: node.host

    def change(work: Work) -> Work:
        return replace(work, judge=lambda order, limit: judge(order, limit, command))

    module.RECOVER_SECONDS = 1.0
    settings = load_settings(node.settings)
    with module.Node(settings, receives=not node.host, change=change, poll_seconds=0.1) as running:
        node.settings.with_suffix(".up").touch()
        running.run(threading.Event())


@dataclass
class NodeProcess:
    """A node that can be killed and started again.

    Attributes:
        folder: of its settings and data.
        port: where it listens.
        seconds: that the stand-in takes for a study.
        host: name of the machine of one that only works.
    """

    folder: Path
    port: int = 0
    seconds: float = 0.0
    host: str = ""
    process: ForkServerProcess | None = field(default=None, repr=False)

    @property
    def settings(self) -> Path:
        return self.folder / f"node{self.host}.toml"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / f"log{self.host}"

    def start(self) -> None:
        up = self.settings.with_suffix(".up")
        up.unlink(missing_ok=True)
        self.process = _FORKS.Process(target=main, args=(replace(self, process=None),), daemon=True)
        self.process.start()
        end = time.monotonic() + START_SECONDS
        while not up.exists():
            assert self.process.is_alive() and time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: nothing is said, nothing is tidied."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def begun(self) -> dict[str, int]:
        """Key and process of each stand-in of this data folder that has not ended well: it is at work, or it died."""
        found = {}
        for file in self.data.glob("work/*/*/pid"):
            if not file.with_name("result").exists() and (text := file.read_text()):
                found[file.parts[-3]] = int(text)
        return found

    def judging(self) -> dict[str, int]:
        """Those of ``begun`` that live and were started by this process."""
        mine = None if self.process is None else self.process.pid
        return {key: pid for key, pid in self.begun().items() if _parent(pid) == mine}


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@contextmanager
def node_process(
    folder: Path, toml: str, *, quiet_seconds: float = 0.3, seconds: float = 0.0, host: str = ""
) -> Iterator[NodeProcess]:
    """A running node; ``toml`` is added to its settings, after ``data``, ``port`` and ``quiet_seconds``."""
    node = NodeProcess(folder, free_port(), seconds, host)
    head = f'data = "data"\nport = {node.port}\nquiet_seconds = {quiet_seconds}\ncomplete = "release"\n'
    node.settings.write_text(head + toml, encoding="utf-8")
    try:
        node.start()
        yield node
    finally:
        node.kill()
