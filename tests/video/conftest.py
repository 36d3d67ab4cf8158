"""A video that many tests read and no test changes."""

import pytest


@pytest.fixture(scope="session")
def clip(stamps, tmp_path_factory):
    return stamps.write(tmp_path_factory.mktemp("video") / "clip.mp4", 120, fps=30, g="24", bf="3")
