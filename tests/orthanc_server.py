"""A real Orthanc on loopback, with its DICOMweb plugin: started once a session, emptied for each test that uses it."""

from __future__ import annotations

import http.client
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components import free_port, missing, need, quick

PLUGIN_PLACES = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc/plugins", "/usr/local/share/orthanc/plugins")
START_SECONDS = 40.0


@dataclass(frozen=True)
class Orthanc:
    """A running server.

    Attributes:
        ae_title: by which it is called; any caller is served.
        host, dicom_port: of the DIMSE service.
        http_port: of REST and DICOMweb, without a password.
    """

    ae_title: str
    host: str
    dicom_port: int
    http_port: int

    @property
    def url(self) -> str:
        """Base of the REST API."""
        return f"http://{self.host}:{self.http_port}"

    @property
    def dicomweb(self) -> str:
        """Base of DICOMweb: STOW-RS, QIDO-RS and WADO-RS."""
        return f"{self.url}/dicom-web"

    def call(self, path: str, *, method: str = "GET", data: bytes | None = None, accept: str = "*/*") -> bytes:
        """One request to the REST API; the body of the answer.

        Raises:
            OSError: the server does not listen, or answers with an error.
        """
        # Not urllib: a proxy of the machine's environment must not come between.
        connection = http.client.HTTPConnection(self.host, self.http_port, timeout=60)
        try:
            connection.request(method, path, data, {"Accept": accept})
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise OSError(f"{method} {path}: {answer.status} {body[:200]!r}")
        return body

    def json(self, path: str, **options: Any) -> Any:
        """``call`` with its answer read as JSON."""
        return json.loads(self.call(path, **options))

    def instances(self) -> list[str]:
        """SOPInstanceUIDs of everything stored."""
        return [item["MainDicomTags"]["SOPInstanceUID"] for item in self.json("/instances?expand")]

    def file_of(self, sop_instance_uid: str) -> bytes:
        """The stored file of one instance, as Orthanc holds it."""
        found = self.json("/tools/lookup", method="POST", data=sop_instance_uid.encode())
        return self.call(f"/instances/{found[0]['ID']}/file")

    def clear(self) -> None:
        """Delete everything stored."""
        for study in self.json("/studies"):
            with suppress(OSError):
                self.call(f"/studies/{study}", method="DELETE")


@contextmanager
def running(folder: Path, **settings: object) -> Iterator[Orthanc]:
    """Start an Orthanc whose data lie in ``folder``; it is stopped at the end, whatever happens.

    Args:
        folder: for its configuration and storage.
        settings: further entries of its configuration.
    """
    program = need("Orthanc")
    plugin = next((p for p in (Path(place) / "libOrthancDicomWeb.so" for place in PLUGIN_PLACES) if p.exists()), None)
    if plugin is None:
        missing("Orthanc's DICOMweb plugin is not installed (Debian: apt install orthanc-dicomweb)")
    server = Orthanc("ORTHANC", "127.0.0.1", free_port(), free_port())
    config = {
        "Name": "tests",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "StorageCompression": False,
        "SyncStorageArea": False,
        "Plugins": [str(plugin)],
        "DicomAet": server.ae_title,
        "DicomPort": server.dicom_port,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "DicomModalities": {},
        "HttpPort": server.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "SslEnabled": False,
        "ConcurrentJobs": 1,
        "HttpThreadsCount": 8,
        "OverwriteInstances": True,
        "StableAge": 1,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True, "Ssl": False},
        **settings,
    }
    (folder / "storage").mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(config))
    log = folder / "orthanc.log"
    with log.open("wb") as stream:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=stream, stderr=stream, env=quick())
    try:
        _wait(server, process, log)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Orthanc, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers; an Orthanc that does not start is shown with its log."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            server.call("/system")
            return
        time.sleep(0.1)
    pytest.fail(f"Orthanc did not start:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="session")
def orthanc_server() -> Iterator[Orthanc]:
    """One server for the whole session."""
    with tempfile.TemporaryDirectory(prefix="orthanc-") as folder, running(Path(folder)) as server:
        yield server


@pytest.fixture
def orthanc(orthanc_server: Orthanc) -> Orthanc:
    """The session's server, with nothing stored."""
    orthanc_server.clear()
    return orthanc_server
