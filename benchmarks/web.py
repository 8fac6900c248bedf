"""How fast the web application is for a reader, alone and with 50 people browsing and 8 uploading while a job runs.

One server as in production (``cspine web run``: waitress, SQLite, DBOS) over loopback. First the reading room of a
study of 300 slices, opened by Chromium with an empty cache: until the first pictures are seen, until keys work
(the server's pictures), until NiiVue draws, and how many bytes came. Then pages as people open them: 50 of them, each
with a session of its own, at random moments, on pages drawn by chance (worklist, reading room, pictures, answers,
results, account, uploads). Idle first; then the same while 8 people upload in pieces as fast as they are taken and
studies are judged one after another. Idle and loaded alternate in one run, and a page's time ends with its last byte.

Goals: the first view under 2 s and under 40 MB; the 95th percentile of pages under 300 ms while a job runs.

    python benchmarks/web.py [--slices 300] [--people 50] [--uploaders 8] [--seconds 20] [--repeats 3] [--no-browser]
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from cspine.web.settings import WebSettings

GOAL_SECONDS, GOAL_BYTES, GOAL_P95_MS = 2.0, 40e6, 300.0
MIB = 2**20
START_SECONDS, JUDGE_SECONDS = 60.0, 900.0
# A person looks at a page for a while before opening the next: mean of an exponential distribution.
THINK_SECONDS = 5.0
PASSWORD = "benchmark of quiet herons"
# The three planes are there to be seen.
PICTURES = "() => [...document.querySelectorAll('.pane img.base')].every(one => one.complete && one.naturalWidth)"
WEBGL = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")


# A site -------------------------------------------------------------------------------------------------------------


def phantom(folder: Path, slices: int) -> Path:
    """A CT of the neck with two fractures, 512 x 512, as a zip; no patient."""
    from cspine.cli.demo import DEMO_SEED, make_study
    from cspine.phantoms.scanner import Scanner

    # The spine of the demo's patient is 112 mm from C1 to C7; the rest of the field is shared out above and below.
    spacing = 187.0 / slices
    make_study(
        folder / "dicom", DEMO_SEED,
        scanner=Scanner(pixel=0.4, matrix=(512, 512), spacing=spacing, thickness=1.0, above_c1=35.0, below_c7=40.0),
    )  # fmt: skip
    path = folder / "neck.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((folder / "dicom").iterdir()):
            archive.write(file, file.name)
    return path


@dataclass(frozen=True)
class Person:
    """Somebody with an account: a session for pages, and a key for uploads."""

    cookie: str
    key: str


@contextmanager
def server(folder: Path, port: int) -> Iterator[int]:
    """The real command; gives the process."""
    settings = folder / "web.toml"
    settings.write_text(
        f'data = "data"\nport = {port}\nsession_minutes = 600\n[limits]\nwaiting = 100000\n[worker]\nthreads = 1\n',
        encoding="utf-8",
    )
    command = [str(Path(sys.executable).with_name("cspine")), "web", "run", "--settings", str(settings)]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(port, process, folder / "server.log")
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server answers."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)
        else:
            return


def free_port() -> int:
    """A TCP port on loopback that nobody uses at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def make_people(settings: WebSettings, count: int) -> list[Person]:
    """Accounts in the database, each logged in and with a key; all in one group, so that all read the same studies."""
    from cspine.web.app import create_app
    from cspine.web.database import db
    from cspine.web.models import ApiToken, Group, Membership, User, now, roles_of
    from cspine.web.security import hashed

    app = create_app(settings, inline=True)
    made = []
    with app.app_context():
        group, password = Group(name="Everybody"), hashed(PASSWORD)
        db.session.add(group)
        for number in range(count):
            person = User(
                email=f"p{number}@example.org", password=password, fs_uniquifier=secrets.token_hex(16),
                confirmed_at=now(), roles=roles_of(db.session, ("reader", "uploader")),
            )  # fmt: skip
            db.session.add(person)
            db.session.flush()
            key = "cspine_" + secrets.token_urlsafe(32)
            scopes, expires = ["read", "upload", "answer"], now() + timedelta(days=1)
            digest = hashlib.sha256(key.encode()).hexdigest()
            db.session.add(ApiToken(user_id=person.id, name="benchmark", digest=digest, scopes=scopes, expires=expires))
            db.session.add(Membership(group_id=group.id, user_id=person.id))
            db.session.commit()
            made.append(key)
    return [Person(cookie_of(settings.port, f"p{number}@example.org"), key) for number, key in enumerate(made)]


def cookie_of(port: int, email: str) -> str:
    """Log in as a browser does; gives the cookie."""
    page = ask(port, "GET", "/login")
    first = page.cookie
    token = re.search(rb'name="csrf-token" content="([^"]+)"', page.body)
    if token is None:
        raise SystemExit("the log-in page has no token")
    form = urlencode({"email": email, "password": PASSWORD, "csrf_token": token[1].decode()})
    kind = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": first}
    answer = ask(port, "POST", "/login", form.encode(), kind)
    if answer.status != 302:
        raise SystemExit(f"logging in failed: {answer.status}")
    return answer.cookie


@dataclass(frozen=True)
class Answer:
    """An answer of the server; ``seconds`` ends with its last byte."""

    status: int
    body: bytes
    cookie: str
    seconds: float


def ask(
    port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None,
    connection: http.client.HTTPConnection | None = None,
) -> Answer:  # fmt: skip
    """One request, on a connection of its own unless one is given."""
    line = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    start = time.perf_counter()
    line.request(method, path, body, headers or {})
    answer = line.getresponse()
    data = answer.read()
    seconds = time.perf_counter() - start
    cookies = [value.split(";")[0] for name, value in answer.getheaders() if name.lower() == "set-cookie"]
    if connection is None:
        line.close()
    return Answer(answer.status, data, "; ".join(one for one in cookies if one.startswith("cspine=")), seconds)


def call(port: int, key: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """One request to the API, with a key."""
    raw = isinstance(body, bytes)
    data = body if raw or body is None else json.dumps(body).encode()
    kind = "application/octet-stream" if raw else "application/json"
    said = {"Authorization": f"Bearer {key}", "Content-Type": kind, **headers}
    answer = ask(port, method, path, data, said)
    if answer.status >= 400:
        raise SystemExit(f"{method} {path}: {answer.status} {answer.body[:300]!r}")
    return json.loads(answer.body) if answer.body else {}


def send(port: int, key: str, data: bytes, piece: int = 8 * MIB, *, stop: Callable[[], bool] = lambda: False) -> str:
    """Upload a zip in pieces; gives the upload's id."""
    upload = call(port, key, "POST", "/api/v1/uploads", {"files": [{"name": "neck.zip", "size": len(data)}]})
    file, piece = upload["files"][0]["id"], min(piece, upload["chunk_bytes"])
    for offset in range(0, len(data), piece):
        if stop():
            break
        path = f"/api/v1/uploads/{upload['id']}/files/{file}?offset={offset}"
        call(port, key, "PUT", path, data[offset : offset + piece])
    return str(upload["id"])


def judged(port: int, key: str, data: bytes) -> str:
    """Upload a study and have it judged; its id."""
    upload = send(port, key, data)
    call(port, key, "POST", f"/api/v1/uploads/{upload}/finish")
    found = until(port, key, f"/api/v1/uploads/{upload}", lambda said: said["state"] != "recognising")
    study = str(found["studies"][0]["id"])
    job = call(port, key, "POST", f"/api/v1/studies/{study}/jobs")
    until(port, key, f"/api/v1/jobs/{job['id']}", lambda said: said["state"] not in ("queued", "running"))
    return study


def until(port: int, key: str, path: str, done: Callable[[Any], bool]) -> Any:
    """Ask until something is said."""
    end = time.monotonic() + JUDGE_SECONDS
    while not done(said := call(port, key, "GET", path)):
        if time.monotonic() > end:
            raise SystemExit(f"{path} did not end: {said}")
        time.sleep(0.2)
    return said


# The reading room ---------------------------------------------------------------------------------------------------


def first_view(port: int, cookie: str, study: str, repeats: int) -> list[dict[str, float]]:
    """Seconds and bytes of the first view, each time with an empty cache."""
    from playwright.sync_api import sync_playwright

    found = []
    base = f"http://127.0.0.1:{port}"
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=path, args=list(WEBGL))
        for _ in range(repeats):
            window = browser.new_context(viewport={"width": 1280, "height": 860})
            name, _, value = cookie.partition("=")
            window.add_cookies([{"name": name, "value": value, "url": base}])
            page = window.new_page()
            wire = window.new_cdp_session(page)
            got: Counter[str] = Counter()
            wire.on("Network.loadingFinished", lambda said, got=got: got.update(bytes=int(said["encodedDataLength"])))
            wire.send("Network.enable")
            start = time.perf_counter()
            page.goto(f"{base}/studies/{study}?rich=1", wait_until="commit")
            page.wait_for_function(PICTURES)
            seen = time.perf_counter() - start
            page.wait_for_selector("html[data-room]", state="attached")
            keys = time.perf_counter() - start
            page.wait_for_selector("html[data-room=rich]", state="attached", timeout=120_000)
            rich = time.perf_counter() - start
            found.append({"seen": seen, "interactive": keys, "rich": rich, "bytes": float(got["bytes"])})
            window.close()
        browser.close()
    return found


# Many at once -------------------------------------------------------------------------------------------------------


def pages_of(study: str, slices: int) -> list[tuple[str, int]]:
    """Addresses that people open, and how often each; a reading room comes with the pictures that it shows."""
    base = f"/studies/{study}"
    return [
        ("/", 30), (base, 20), (f"{base}/slices/axial/{slices // 2}.jpg?window=bone", 10),
        (f"{base}/overlays/axial/{slices // 2}.png", 5), (f"{base}/answers", 8), (f"{base}/results", 6),
        ("/dashboard", 3), ("/account/", 4), ("/uploads", 8), ("/api/jobs", 6),
    ]  # fmt: skip


@dataclass
class Load:
    """People at work.

    Attributes:
        times: seconds of each page, by page.
        failures: answers that were no pages.
        sent: uploads that were sent whole.
    """

    port: int
    people: Sequence[Person]
    pages: Sequence[tuple[str, int]]
    times: dict[str, list[float]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _end: threading.Event = field(default_factory=threading.Event)

    def run(self, seconds: float, uploaders: Sequence[Person] = (), data: bytes = b"", seed: int = 0) -> None:
        """Everybody browses for so long; some also upload."""
        threads = [
            threading.Thread(target=self._browse, args=(person, random.Random(seed + number)))
            for number, person in enumerate(self.people)
        ]
        threads += [threading.Thread(target=self._upload, args=(person, data)) for person in uploaders]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self._end.set()
        for thread in threads:
            thread.join()

    def _browse(self, person: Person, rng: random.Random) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        addresses, weights = zip(*self.pages, strict=True)
        # Nobody begins at the same moment.
        while not self._end.wait(rng.expovariate(1 / THINK_SECONDS)):
            path = rng.choices(addresses, weights)[0]
            try:
                answer = ask(self.port, "GET", path, None, {"Cookie": person.cookie}, connection)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                with self._lock:
                    self.failures[type(error).__name__] += 1
                continue
            with self._lock:
                if answer.status == 200:
                    self.times.setdefault(path.split("?")[0], []).append(answer.seconds)
                else:
                    self.failures[f"{answer.status} {path}"] += 1

    def _upload(self, person: Person, data: bytes) -> None:
        while not self._end.is_set():
            upload = send(self.port, person.key, data, stop=self._end.is_set)
            self.sent += not self._end.is_set()
            call(self.port, person.key, "DELETE", f"/api/v1/uploads/{upload}")

    @property
    def all(self) -> list[float]:
        """Every page's seconds."""
        return [one for times in self.times.values() for one in times]


@contextmanager
def judging(port: int, person: Person, study: str) -> Iterator[list[int]]:
    """A study that is judged again and again meanwhile; gives how often, in the end."""
    end, count = threading.Event(), [0]

    def run() -> None:
        while not end.is_set():
            job = call(port, person.key, "POST", f"/api/v1/studies/{study}/jobs")["id"]
            while call(port, person.key, "GET", f"/api/v1/jobs/{job}")["state"] in ("queued", "running"):
                if end.wait(0.5):
                    call(port, person.key, "POST", f"/api/v1/jobs/{job}/cancel")
                    return
            count[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        time.sleep(1.0)  # it has begun
        yield count
    finally:
        end.set()
        thread.join()


def share(port: int, owner: Person, study: str) -> None:
    """Let everybody read a study."""
    group = call(port, owner.key, "GET", "/api/v1/groups")["groups"][0]["id"]
    call(port, owner.key, "PUT", f"/api/v1/studies/{study}/groups/{group}")


# What is said -------------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between neighbours (``statistics.quantiles``, inclusive)."""
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


def line(name: str, times: Sequence[float]) -> str:
    """Count, median, 95th and 99th percentile in milliseconds."""
    p50, p95, p99 = (1000 * percentile(times, one) for one in (0.5, 0.95, 0.99))
    return f"{name:<34} {len(times):>6} {p50:>8.0f} {p95:>8.0f} {p99:>8.0f}"


def tell(title: str, load: Load) -> None:
    """A table of one kind of load."""
    print(f"\n{title}\n{'page':<34} {'count':>6} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8}")
    for path in sorted(load.times):
        print(line(re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "…", path), load.times[path]))
    print(line("all", load.all))
    if load.failures:
        print(f"failures: {dict(load.failures)}")


def crowd(options: argparse.Namespace, port: int, people: Sequence[Person], study: str, data: bytes) -> bool:
    """Idle and loaded in turns; whether the goal holds."""
    pages = pages_of(study, options.slices)
    idle, busy = Load(port, people, pages), Load(port, people, pages)
    runs = 0
    for turn in range(options.repeats):
        for load in (idle, busy):
            load._end.clear()  # noqa: SLF001
            if load is idle:
                load.run(options.seconds, seed=1000 * turn)
            else:
                with judging(port, people[-1], study) as count:
                    load.run(options.seconds, people[: options.uploaders], data, seed=1000 * turn)
                runs += count[0]
    tell(f"{len(people)} people browse, nothing else happens", idle)
    tell(f"the same while {options.uploaders} upload ({busy.sent} sent) and a study is judged ({runs} times)", busy)
    p95 = 1000 * percentile(busy.all, 0.95)
    print(f"\np95 {p95:.0f} ms with load, {1000 * percentile(idle.all, 0.95):.0f} ms idle; goal {GOAL_P95_MS:.0f} ms")
    return p95 < GOAL_P95_MS and not busy.failures


def room(options: argparse.Namespace, port: int, person: Person, study: str) -> bool:
    """The reading room in Chromium; whether the goals hold."""
    views = first_view(port, person.cookie, study, options.repeats)
    middle = {name: statistics.median(view[name] for view in views) for name in views[0]}
    print(f"\nreading room of {options.slices} slices, medians of {options.repeats}, empty cache")
    print(f"first pictures {middle['seen']:.2f} s, keys {middle['interactive']:.2f} s, NiiVue {middle['rich']:.2f} s")
    print(f"sent {middle['bytes'] / 1e6:.1f} MB; goals {GOAL_SECONDS:.0f} s and {GOAL_BYTES / 1e6:.0f} MB")
    return middle["interactive"] < GOAL_SECONDS and middle["bytes"] < GOAL_BYTES


def main() -> None:
    """Measure and print; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--uploaders", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-browser", action="store_true", help="leave the reading room out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cspine-web-benchmark-") as name:
        folder = Path(name)
        print(f"{os.cpu_count()} processors; a phantom of {options.slices} slices is made", flush=True)
        data = phantom(folder, options.slices).read_bytes()
        port = free_port()
        with server(folder, port):
            people = make_people(WebSettings(data=folder / "data", port=port), options.people)
            study = judged(port, people[-1].key, data)
            share(port, people[-1], study)
            good = options.no_browser or room(options, port, people[0], study)
            good = crowd(options, port, people, study, data) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
