"""The light install: `size`, `gateway` and `bench` work without torch and vLLM, and never load them."""

import subprocess
import sys

import pytest

BLOCKER = """
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "vllm", "transformers", "safetensors"}:
            raise ModuleNotFoundError(f"{name} is not installed here")
sys.meta_path.insert(0, NotInstalled())
"""


def run_without_engine_stack(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKER + code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("room", ["gateway", "sizing", "benchmarks"])
def test_every_module_of_the_room_imports_without_the_engine_stack(room: str) -> None:
    code = f"""
import importlib, pkgutil, {room}
names = [m.name for m in pkgutil.walk_packages({room}.__path__, "{room}.")]
assert len(names) > 5, names
for name in names:
    importlib.import_module(name)
"""
    done = run_without_engine_stack(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["size", "--help"], ["gateway", "--help"], ["bench", "run", "--help"]])
def test_the_commands_run_without_the_engine_stack(command: list[str]) -> None:
    done = run_without_engine_stack(
        f"import sys; sys.argv = ['berth', *{command!r}]; from serving.cli import main; main()"
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: berth" in done.stdout


def test_the_gateways_command_loads_no_room_but_its_own_and_nothing_it_can_do_without() -> None:
    done = run_without_engine_stack("""
import serving.cli, serving.commands.gateway
loaded = {name.partition(".")[0] for name in sys.modules}
print(*sorted(loaded & {"gateway", "serving", "sizing", "benchmarks", "psutil", "rich"}))
""")
    assert (done.stdout, done.stderr) == ("gateway serving\n", "")


def test_the_blocker_blocks() -> None:
    done = run_without_engine_stack("import torch")
    assert "torch is not installed here" in done.stderr
