"""The web application in a process of its own, that tests may kill: ``python web_worker.py ORDER READY``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 60.0


@dataclass(frozen=True)
class Worker:
    """A process that works on a queue, and perhaps answers browsers at ``address``."""

    process: subprocess.Popen[bytes]
    address: str

    def kill(self) -> None:
        """SIGKILL; it is gone when this returns."""
        self.process.kill()
        self.process.wait()


def eventually(what: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait until something holds; fails when it does not in time."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


@contextmanager
def worker(
    folder: Path,
    *,
    judge: Sequence[str],
    recognise: Sequence[str] | None = None,
    people: Sequence[str] = (),
    serve: bool = False,
    port: int = 0,
    **settings: Any,
) -> Iterator[Worker]:
    """A process that works on the queue of ``folder / "data"``.

    Args:
        folder: scratch.
        judge: command of the child that judges.
        recognise: of the one that looks at uploads; None for the real one.
        people: accounts that are made first.
        serve: also answer browsers.
        port: at which; 0 for any.
        settings: as in ``web_factory.web_app``.
    """
    order, ready = folder / "worker.json", folder / "ready"
    said = {
        "folder": str(folder),
        "judge": judge,
        "recognise": recognise,
        "people": people,
        "serve": serve,
        "port": port,
    }
    order.write_text(json.dumps({**said, "settings": settings}), encoding="utf-8")
    ready.unlink(missing_ok=True)
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, __file__, str(order), str(ready)], stderr=log, stdout=log)
        try:
            eventually(lambda: ready.exists() or process.poll() is not None)
            assert process.poll() is None, (folder / "worker.log").read_text(encoding="utf-8")
            yield Worker(process, ready.read_text(encoding="ascii"))
        finally:
            process.kill()
            process.wait()


def main(order: str, ready: str) -> None:
    """Make the application, start its queue and wait to be ended."""
    from werkzeug.serving import make_server

    from web_factory import person, web_app

    said = json.loads(Path(order).read_text(encoding="utf-8"))
    more = {} if said["serve"] else {"blueprints": ()}
    app = web_app(Path(said["folder"]), inline=False, **more, **said["settings"])
    for email in said["people"]:
        person(app, email)
    jobs = app.extensions["cspine"].jobs
    jobs.work.judge = tuple(said["judge"])
    if said["recognise"]:
        jobs.work.recognise = tuple(said["recognise"])
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    jobs.start()
    address = ""
    if said["serve"]:
        server = make_server("127.0.0.1", said["port"], app, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
    whole = Path(ready).with_suffix(".part")
    whole.write_text(address, encoding="ascii")
    whole.rename(ready)
    end.wait()
    jobs.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
