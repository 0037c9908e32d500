"""The generated parts of README.md and docs/: every `--help`, the sizing examples, fields. `make docs` rewrites them.

A part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. The sizing example runs against a loopback Hub that
holds the published facts of the model it names, so that it can be checked without a network.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from gateway.access_log import FIELDS
from gateway.status import KvCacheStatus, ModelStatus, ReplicaStatus, RouteStatus, RoutingStatus, Status
from tests.hub import LoopbackHub, running
from tests.sizing.models import published_configs, qwen3_tensors, write_safetensors

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
COMMANDS = (
    "",
    "serve",
    "size",
    "size plan",
    "size compare",
    "size calibrate",
    "gateway",
    "bench run",
    "keys new",
)
SIZE = ("size", "Qwen/Qwen3-8B", "--gpu", "L40S", "--max-model-len", "32K")
PLAN = ("size", "plan", "Qwen/Qwen3-8B", "--cards", "2xRTX4090,L40S", "--max-model-len", "32K", "--concurrency", "4")
COMPARE = ("size", "compare", "Qwen/Qwen3-8B", "--gpus", "L40S,2xRTX4090", "--slo", "ttft=2,tpot=0.05")
_MODEL = "Qwen/Qwen3-8B"
_WIDTH = 110


def run(*args: str, env: dict[str, str] | None = None) -> str:
    """What a `berth` command prints on a plain terminal of fixed width."""
    variables = {**os.environ, "COLUMNS": str(_WIDTH), "TERMINAL_WIDTH": str(_WIDTH), "TERM": "dumb", "NO_COLOR": "1"}
    berth = Path(sys.executable).with_name("berth")
    done = subprocess.run([berth, *args], capture_output=True, text=True, check=True, env=variables | (env or {}))
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def help_part() -> str:
    """All the help texts, one block each."""
    blocks = []
    for command in COMMANDS:
        args = [*command.split(), "--help"]
        blocks.append(f"```console\n$ berth {' '.join(args)}\n{run(*args)}\n```")
    return "\n\n".join(blocks)


def size_part() -> str:
    return _sized(SIZE)


def plan_part() -> str:
    return _sized(PLAN)


def compare_part() -> str:
    return _sized(COMPARE)


def _sized(command: tuple[str, ...]) -> str:
    """A sizing example, answered from `config.json` and safetensors headers by ranged reads."""
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "model.safetensors"
        config = published_configs()[_MODEL]
        write_safetensors(weights, qwen3_tensors(config))
        files = {"config.json": json.dumps(config).encode(), "model.safetensors": weights.read_bytes()}
        with running(LoopbackHub(_MODEL, files)) as hub:
            env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": scratch, "BERTH_STATE_DIR": scratch}
            return f"```console\n$ berth {' '.join(command)}\n{run(*command, env=env)}\n```"


def log_part() -> str:
    """The keys of a JSON line of the access log."""
    return _table({f"`{name}`": meaning for name, meaning in FIELDS.items()})


def status_part() -> str:
    """The fields of `GET /status`."""
    rows: dict[str, str] = {}
    for prefix, part in (
        ("", Status),
        ("models[].", ModelStatus),
        ("routes[].", RouteStatus),
        ("replicas[].", ReplicaStatus),
        ("replicas[].routing.", RoutingStatus),
        ("replicas[].kv_cache.", KvCacheStatus),
    ):
        rows |= {f"`{prefix}{name}`": field.description or "" for name, field in part.model_fields.items()}
    return _table(rows)


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| field | |", "|---|---|", *(f"| {name} | {meaning} |" for name, meaning in rows.items())])


PARTS = {
    "help": help_part,
    "size": size_part,
    "plan": plan_part,
    "compare": compare_part,
    "log": log_part,
    "status": status_part,
}


def parts_in(text: str) -> list[str]:
    """The names of its generated parts."""
    return re.findall(r"<!-- begin (\w+) -->", text)


def written(text: str) -> str:
    """`text` with every generated part made anew."""
    for name in parts_in(text):
        pattern = re.compile(f"(<!-- begin {name} -->\n).*?(\n<!-- end {name} -->)", re.DOTALL)
        body = PARTS[name]()
        text = pattern.sub(lambda found, body=body: found[1] + body + found[2], text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text()))
