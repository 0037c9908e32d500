"""The tools these tests run, next to the Python that runs the tests. A missing one is a failure, never a skip."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def _tool(name: str, remedy: str) -> Path:
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.fail(f"{path} is missing: {remedy}", pytrace=False)
    return path


@pytest.fixture
def promtool() -> Path:
    """Checks Prometheus files."""
    return _tool("promtool", "run `sh deploy/promtool.sh VENV`, or `make test`, which does")


@pytest.fixture
def prometheus() -> Path:
    """The server itself."""
    return _tool("prometheus", "run `sh deploy/promtool.sh VENV`, or `make test`, which does")


@pytest.fixture
def hadolint() -> Path:
    """Lints Containerfiles."""
    return _tool("hadolint", "it comes with `pip install -r deploy/locks/dev.txt`")


@pytest.fixture
def deploy_file() -> Callable[[str], Path]:
    """The path of a file of deploy/, which must exist."""

    def find(name: str) -> Path:
        path = DEPLOY / name
        assert path.is_file(), f"deploy/{name} is missing"
        return path

    return find
