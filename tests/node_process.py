"""A node in a process of its own, whose judge is the stand-in: ``python node_process.py SETTINGS CHILD_FOLDER``."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from components import free_port

START_SECONDS = 60.0


def main(settings: str, child: str) -> None:
    from cspine.node.node import Node
    from cspine.node.settings import load_settings
    from cspine.node.supervise import judge
    from cspine.node.work import Work
    from node_work_factory import fake_child

    command = fake_child(Path(child))

    def change(work: Work) -> Work:
        return replace(work, judge=lambda order, seconds: judge(order, seconds, command))

    with Node(load_settings(settings), change=change, poll_seconds=0.05) as node:
        Path(settings).with_suffix(".up").touch()
        node.run(threading.Event())


@dataclass
class NodeProcess:
    """A node that can be killed and started again.

    Attributes:
        folder: of its settings and data.
        port: where it listens.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> Path:
        return self.folder / "node.toml"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        up = self.settings.with_suffix(".up")
        up.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.settings), str(self.folder / "child")],
            cwd=Path(__file__).parent,
            stderr=(self.folder / "log").open("ab"),
        )
        end = time.monotonic() + START_SECONDS
        while not up.exists():
            assert self.process.poll() is None and time.monotonic() < end, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: nothing is said, nothing is tidied."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def node_process(folder: Path, toml: str, *, quiet_seconds: float = 0.3) -> Iterator[NodeProcess]:
    """A running node; ``toml`` is added to its settings, after ``data``, ``port`` and ``quiet_seconds``."""
    node = NodeProcess(folder, free_port())
    head = f'data = "data"\nport = {node.port}\nquiet_seconds = {quiet_seconds}\ncomplete = "release"\n'
    node.settings.write_text(head + toml, encoding="utf-8")
    try:
        node.start()
        yield node
    finally:
        node.kill()


if __name__ == "__main__":
    main(*sys.argv[1:])
