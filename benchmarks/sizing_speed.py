"""Measured speed beside predicted: how far off the shipped table is, and a fit on one half checked on the other.

    python -m benchmarks.sizing_speed --perf RUNS.json... --configs CONFIGS.json... [--out ROWS.jsonl]

The halves are by group (model and card), so that runs that differ only in load never leak from one to the other: a
group is in the fit half when the SHA-256 of its name is even. Errors are |predicted / measured - 1|.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from benchmarks.errors import BenchError
from benchmarks.speed_rows import Rows, read_rows
from benchmarks.statistics import percentile
from sizing.efficiency import EFFICIENCY, FIT, FITTED, Efficiency
from sizing.speed import Estimate, speed
from sizing.speed_fit import LogErrors, Measurement, fit, log_errors

FEW = FIT.few_at_most
OWN_ROWS = Path(__file__).with_name("data") / "perf_public.jsonl"
OWN_CONFIGS = Path(__file__).with_name("data") / "perf_public_configs.json"
"""Public measurements that every comparison holds, beside the rows it is given."""
BLIND_ROWS = Path(__file__).with_name("data") / "perf_blind.jsonl"
BLIND_CONFIGS = Path(__file__).with_name("data") / "perf_blind_configs.json"
"""Public measurements that no coefficient was fitted to."""


@dataclass(frozen=True)
class Bar:
    """A claim about errors: of which figure, over which rows, and the most that its median and its p90 may be."""

    title: str
    figure: str
    few_only: bool
    median: float
    p90: float | None
    only: Literal["dense", "experts"] | None = None


BARS = (
    Bar(f"TPOT, at most {FEW} in flight", "tpot", True, 0.10, 0.25),
    Bar("output tokens/s, all rows", "output_rate", False, 0.15, None),
    Bar(f"TTFT, at most {FEW} in flight", "ttft", True, 0.20, None),
)
EXTRA = (
    Bar("TPOT, few, dense models", "tpot", True, math.inf, None, "dense"),
    Bar("TPOT, few, mixtures of experts", "tpot", True, math.inf, None, "experts"),
    Bar("TPOT, all rows", "tpot", False, math.inf, None),
    Bar("TTFT, all rows", "ttft", False, math.inf, None),
    Bar("steps of one prompt", "prefill", False, math.inf, None),
)


def in_fit_half(row: Measurement) -> bool:
    return int(hashlib.sha256(row.group.encode()).hexdigest(), 16) % 2 == 0


def relative(log_error: float) -> float:
    return abs(math.exp(log_error) - 1)


def counted(bar: Bar, rows: Sequence[Measurement]) -> list[Measurement]:
    kind = {None: {True, False}, "dense": {False}, "experts": {True}}[bar.only]
    return [row for row in rows if (not bar.few_only or is_few(row)) and bool(row.shape.experts) in kind]


def is_few(row: Measurement) -> bool:
    """Told by one replica's share of the requests in flight."""
    return row.load.concurrency / row.engine.data_parallel_size <= FEW


def leave_one_group_out(rows: Sequence[Measurement]) -> dict[str, LogErrors]:
    """Every row's errors by a fit to all groups but its own."""
    found: dict[str, LogErrors] = {}
    for group in sorted({row.group for row in rows}):
        efficiency = fit([row for row in rows if row.group != group])
        found |= {row.name: log_errors(row, efficiency) for row in rows if row.group == group}
    return found


def table(title: str, rows: Sequence[Measurement], errors: dict[str, LogErrors]) -> Table:
    shown = Table(title=title, title_justify="left", min_width=90)
    for name in ("figure", "n", "median", "p90", "bar", "met"):
        shown.add_column(name, justify="left" if name == "figure" else "right")
    for bar in (*BARS, *EXTRA):
        found = [getattr(errors[row.name], bar.figure) for row in counted(bar, rows)]
        sizes = [relative(error) for error in found if error is not None]
        if not sizes:
            continue
        median, p90 = percentile(sizes, 0.5), percentile(sizes, 0.9)
        met = median <= bar.median and (bar.p90 is None or p90 <= bar.p90)
        allowed = "" if bar in EXTRA else f"{bar.median:.0%}" + (f" / {bar.p90:.0%}" if bar.p90 else "")
        verdict = "" if bar in EXTRA else "yes" if met else "no"
        shown.add_row(bar.title, str(len(sizes)), f"{median:.1%}", f"{p90:.1%}", allowed, verdict)
    return shown


def within_bands(rows: Sequence[Measurement]) -> str:
    """How many measured figures lie within the band that was given for them."""
    found: dict[str, list[bool]] = {"TTFT": [], "TPOT": [], "output tokens/s": []}
    for row in rows:
        told = speed(row.shape, row.engine, row.load)
        for title, band, truth in (
            ("TTFT", told.ttft_s, row.ttft_s),
            ("TPOT", told.tpot_s, row.tpot_s),
            ("output tokens/s", told.output_tokens_s, row.output_tokens_s),
        ):
            if band is not None and truth is not None:
                found[title].append(band.low <= truth <= band.high)
    return ", ".join(f"{title} {sum(inside)} of {len(inside)}" for title, inside in found.items())


def line(row: Measurement, held_out: LogErrors) -> str:
    """One JSON object: prediction by the shipped table, truth, signed error and band of every figure, in seconds."""
    found = speed(row.shape, row.engine, row.load)
    figures: dict[str, tuple[Estimate | None, float | None, float | None]] = {
        "ttft_s": (found.ttft_s, row.ttft_s, held_out.ttft),
        "tpot_s": (found.tpot_s, row.tpot_s, held_out.tpot),
        "output_tokens_s": (found.output_tokens_s, row.output_tokens_s, held_out.output_rate),
    }
    entry: dict[str, object] = {"id": row.name, "group": row.group, "half": "fit" if in_fit_half(row) else "check"}
    for name, (estimate, truth, other) in figures.items():
        if estimate is not None and truth is not None and other is not None:
            entry[name] = {
                "prediction": estimate.value,
                "truth": truth,
                "error": estimate.value / truth - 1,
                "band": [estimate.low, estimate.high],
                "left_out_error": math.exp(other) - 1,
            }
    entry["outside"] = list(found.outside)
    return json.dumps(entry)


def show(console: Console, rows: Rows, out: Path | None) -> None:
    measured = rows.measurements
    shipped = {row.name: log_errors(row, EFFICIENCY) for row in measured}
    console.print(f"{len(measured)} rows predicted" + _left_out(rows))
    console.print(table(f"Shipped table, all rows (fitted {FIT.as_of} to {FIT.rows} rows)", measured, shipped))
    first = [row for row in measured if in_fit_half(row)]
    second = [row for row in measured if not in_fit_half(row)]
    if first and second:
        efficiency = fit(first)
        refitted = {row.name: log_errors(row, efficiency) for row in measured}
        console.print(table("Fit half, by its own fit", first, refitted))
        console.print(table("Check half, by the fit half's fit", second, refitted))
        console.print("Coefficients of the fit half: " + _coefficients(efficiency))
    left_out = leave_one_group_out(measured) if len({row.group for row in measured}) > 1 else shipped
    console.print(table("Every group by a fit to all the others", measured, left_out))
    console.print("p90 of |ln error| by the fits to all others: " + _spreads(measured, left_out))
    blind = read_rows([BLIND_ROWS], [BLIND_CONFIGS, OWN_CONFIGS]).measurements
    told = {row.name: log_errors(row, EFFICIENCY) for row in blind}
    console.print(table("Shipped table, runs that nothing was fitted to", blind, told))
    console.print("Within the bands: " + within_bands(blind))
    if out is not None:
        out.write_text("".join(line(row, left_out[row.name]) + "\n" for row in measured))
        console.print(f"Rows: {out}")


def speed_lines(console: Console, perf: Sequence[Path], configs: Sequence[Path]) -> list[str]:
    """What `make bench-sizing` says of measured runs: the tables, and one JSON object per row of these files alone."""
    given = read_rows(list(perf), [*configs, OWN_CONFIGS])
    show(console, read_rows([*perf, OWN_ROWS], [*configs, OWN_CONFIGS]), None)
    return [line(row, log_errors(row, EFFICIENCY)) for row in given.measurements]


def _left_out(rows: Rows) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in rows.left_out.most_common())
    return f"; left out: {reasons}" if reasons else ""


def _coefficients(efficiency: Efficiency) -> str:
    return ", ".join(f"{name}={getattr(efficiency, name):.4g}" for name in FITTED)


def _spreads(rows: Sequence[Measurement], errors: dict[str, LogErrors]) -> str:
    """What `sizing.efficiency.FIT` records: the widths of the bands."""
    parts = []
    for title, few in ((f"at most {FEW} in flight", True), ("more", False)):
        chosen = [errors[row.name] for row in rows if is_few(row) is few]
        widths = {
            name: percentile((abs(e) for e in (getattr(one, name) for one in chosen) if e is not None), 0.9)
            for name in ("ttft", "tpot", "output_rate")
        }
        parts.append(f"{title} (n={len(chosen)}) " + " ".join(f"{name} {width:.3f}" for name, width in widths.items()))
    return "; ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measured speed beside predicted.")
    parser.add_argument(
        "--perf", type=Path, nargs="+", default=[], help="JSON lists of runs, or one run a line (.jsonl)"
    )
    parser.add_argument("--configs", type=Path, nargs="+", default=[], help="JSON objects of config.json by model")
    parser.add_argument("--alone", action="store_true", help="without the public runs of benchmarks/data")
    parser.add_argument("--out", type=Path, help="one JSON line per row goes here")
    asked = parser.parse_args(argv)
    try:
        own = not (asked.perf and asked.alone)
        perf, configs = [*asked.perf, *[OWN_ROWS] * own], [*asked.configs, *[OWN_CONFIGS] * own]
        show(Console(width=120, highlight=False), read_rows(perf, configs), asked.out)
    except (BenchError, OSError) as error:
        sys.stderr.write(f"bench-speed: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
