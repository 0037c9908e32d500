"""How long an answer takes: a plan once metadata is read, and `berth size` as a whole process beside a floor.

    python -m benchmarks.plan_speed [path/to/config.json ...]

A plan is 20 kinds of card, 4 parallel sizes and 6 contexts of one model. The floor of the command is a Python that
imports what it prints with (typer, rich) and ends.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sizing.config_json import parse_config
from sizing.errors import SizingError
from sizing.gpu import catalogue
from sizing.islands import like_cards
from sizing.model import ModelShape
from sizing.options import Answers, options
from sizing.question import Question

KINDS = 20
PARALLEL_SIZES = (1, 2, 4, 8)
CONTEXTS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
_REPEATS = 5
_PROCESSES = 7
_CONFIGS = Path(__file__).with_name("data") / "model_configs.json"
_MODELS = ("Qwen/Qwen2.5-72B-Instruct", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", "google/gemma-3-12b-it")


def plan(model: ModelShape) -> tuple[int, int]:
    """Every cell of the table, answered anew; how many fit, and how many are refused for what the model is."""
    answers = Answers()
    fit = refused = 0
    for card in catalogue()[:KINDS]:
        for size in PARALLEL_SIZES:
            asked = Question(model=model, device=card, count=size, tensor_parallel_size=size)
            for length in CONTEXTS:
                try:
                    fit += answers.settled(replace(asked, max_model_len=min(length, model.longest_model_len))).fits
                except SizingError:
                    refused += 1
    return fit, refused


def timed_plan(name: str, config: Mapping[str, object]) -> str:
    """One line: the best of a few runs, each with a shape of its own, which works some figures out once."""
    box = like_cards(catalogue()[0], 8)
    best_s = ranked_s = float("inf")
    fit = refused = 0
    for _ in range(_REPEATS):
        model = parse_config(config, name=name)
        start = time.perf_counter()
        fit, refused = plan(model)
        best_s = min(best_s, time.perf_counter() - start)
        start = time.perf_counter()
        options(Question(model=model, device=box[0]), box)
        ranked_s = min(ranked_s, time.perf_counter() - start)
    cells = KINDS * len(PARALLEL_SIZES) * len(CONTEXTS)
    return (
        f"{name}: {cells} cells in {best_s * 1000:.0f} ms, of which {fit} fit and {refused} are refused; "
        f"all ways on 8 cards of one kind ranked in {ranked_s * 1000:.0f} ms"
    )


def timed_command(config: Mapping[str, object]) -> str:
    """`berth size FOLDER` beside the floor: medians of whole processes, taken in turn."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        berth = [sys.executable, "-m", "serving.cli", "size", folder, "--gpu", "B300", "--max-model-len", "4096"]
        floor = [sys.executable, "-c", "import typer, rich.console, rich.table"]
        taken: dict[str, list[float]] = {"berth size": [], "floor": []}
        for _ in range(_PROCESSES):
            for name, command in (("floor", floor), ("berth size", berth)):
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                taken[name].append(time.perf_counter() - start)
    ours, least = (statistics.median(taken[name]) for name in ("berth size", "floor"))
    return (
        f"berth size from a local folder: {ours:.2f} s in all, floor (typer, rich) {least:.2f} s, "
        f"ratio {ours / least:.1f}"
    )


def main(paths: list[str]) -> None:
    """A line for each config file, by default for a few models of benchmarks/data."""
    console = Console(soft_wrap=True, highlight=False)
    if paths:
        configs = {Path(path).parent.name: json.loads(Path(path).read_text(encoding="utf-8")) for path in paths}
    else:
        known = json.loads(_CONFIGS.read_text(encoding="utf-8"))
        configs = {name: known[name] for name in _MODELS}
    for name, config in configs.items():
        console.print(timed_plan(name, config))
    console.print(timed_command(next(iter(configs.values()))))


if __name__ == "__main__":
    main(sys.argv[1:])
