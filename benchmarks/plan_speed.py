"""How long a plan takes once a model's metadata is read: 20 kinds of card, 4 parallel sizes, 6 contexts.

python -m benchmarks.plan_speed path/to/config.json ...
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sizing.config_json import parse_config
from sizing.errors import SizingError
from sizing.gpu import catalogue
from sizing.islands import like_cards
from sizing.model import ModelShape
from sizing.options import Answers, options
from sizing.plan import Question

KINDS = 20
PARALLEL_SIZES = (1, 2, 4, 8)
CONTEXTS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
_REPEATS = 5


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


def main(paths: list[str]) -> None:
    """One line for each config file."""
    console = Console(soft_wrap=True, highlight=False)
    box = like_cards(catalogue()[0], 8)
    for path in paths:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        best_s = ranked_s = float("inf")
        fit = refused = 0
        for _ in range(_REPEATS):  # a shape works some figures out once: each run gets one of its own
            model = parse_config(config, name=Path(path).parent.name)
            start = time.perf_counter()
            fit, refused = plan(model)
            best_s = min(best_s, time.perf_counter() - start)
            start = time.perf_counter()
            options(Question(model=model, device=box[0]), box)
            ranked_s = min(ranked_s, time.perf_counter() - start)
        cells = KINDS * len(PARALLEL_SIZES) * len(CONTEXTS)
        console.print(
            f"{path}: {cells} cells in {best_s * 1000:.0f} ms, of which {fit} fit and {refused} are refused; "
            f"all ways on 8 cards of one kind ranked in {ranked_s * 1000:.0f} ms"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
