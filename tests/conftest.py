"""What every test may use: where the shared data lie, and Hypothesis that tries the same examples every time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Fixtures for every test: a real Orthanc, a real PostgreSQL and a real Chromium, started when the first test asks for
# them.
from orthanc_server import orthanc, orthanc_server
from postgres_server import postgres, postgres_server
from web_browser import assets, chromium

__all__ = ["assets", "chromium", "orthanc", "orthanc_server", "postgres", "postgres_server", "shared_data"]

# Every run of the suite tries the same examples: a red build is red for everybody. `--hypothesis-profile explore`
# looks for new ones.
settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("fixed")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real scans that are not part of the repository; skips where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("real scans are not here (../shared/data beside the checkout): this test needs them")
    return SHARED_DATA
