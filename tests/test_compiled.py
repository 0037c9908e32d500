"""`make compiled`: what every request goes through does as machine code what it does as it is written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("serving", "gateway", "sizing", "benchmarks", "tests")
OF_COMPILED = (
    *("tests/gateway/routing", "tests/gateway/admission", "tests/gateway/wire"),
    *("tests/gateway/test_stream.py", "tests/gateway/test_failover.py", "tests/gateway/test_metrics.py"),
    *("tests/gateway/test_lane.py", "tests/gateway/test_disconnect.py", "tests/gateway/test_odd_peers.py"),
    *("tests/gateway/test_control.py", "tests/gateway/test_continuation.py", "tests/gateway/test_heads.py"),
)


@pytest.mark.timeout(900)
def test_what_is_compiled_passes_the_same_tests(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler here, and none is needed but for this")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    wheel = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", ".")
    _run(tmp_path, *wheel, HATCH_BUILD_HOOK_ENABLE_MYPYC="true")  # it leaves each module's machine code beside it
    where = "import gateway.routing.router as one, gateway.exchange as two; print(one.__file__, two.__file__)"
    found = _run(tmp_path, "-c", where).split()
    assert [path.endswith(".so") and path.startswith(str(tmp_path)) for path in found] == [True, True]
    assert " passed" in _run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", *OF_COMPILED)


def _run(folder: Path, *args: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *args], cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout
