"""What `berth serve` prints for people: the plan, the commands, and, when all is ready, the first request."""

import shlex
from collections.abc import Sequence
from functools import partial
from typing import Literal

from rich.console import Console
from rich.table import Table

from gateway.app import Gateway
from serving.announcing import say_door
from serving.engine import argv
from serving.placement import Placement
from serving.progress import Progress
from serving.supervisor import Supervisor
from serving.voice import say

_FEW_REJECTED = 3
Rejections = Literal["none", "few", "all"]


def show_plan(
    placements: Sequence[Placement], console: Console, *, commands: bool, rejected: Rejections = "none"
) -> None:
    """The placement as a table, each answer with its numbers; on request exact commands, and what else there was."""
    console.print(_table(placements))
    for placement in placements:
        for note in placement.notes:
            console.print(f"{placement.spec.name}: {note}", highlight=False, markup=False)
    for placement in placements if commands else ():
        console.print(f"\n# {placement.spec.name}", highlight=False)
        variables = [f"{name}={shlex.quote(value)}" for name, value in placement.spec.env.items()]
        print(" ".join([*variables, shlex.join(argv(placement.spec))]))  # to be copied: never wrapped
    for placement in placements if rejected != "none" else ():
        _show_rejected(placement, all_of_them=rejected == "all")


def _table(placements: Sequence[Placement]) -> Table:
    table = Table(title="Placement", title_justify="left", header_style="bold")
    for heading in ("replica", "on", "weights", "KV cache", "KV tokens", "context", "requests that fit"):
        table.add_column(heading, justify="left" if heading in ("replica", "on") else "right")
    for placement in placements:
        found = placement.answer
        table.add_row(
            placement.spec.name,
            placement.where,
            _gib(found.weights_bytes),
            _gib(found.kv_cache_bytes),
            f"{found.kv_cache_tokens:,}",
            f"{found.settings.max_model_len:,}",
            f"{found.requests_fit}",
        )
    return table


def _show_rejected(placement: Placement, *, all_of_them: bool) -> None:
    """Every other way to serve the model, and why not, a line each."""
    if not placement.rejected:
        return
    shown = placement.rejected if all_of_them else placement.rejected[:_FEW_REJECTED]
    print(f"\n# {placement.spec.served_model_name}: what else there was, and why not")
    for each in shown:
        print(f"  {each.what}: {each.why}")
    if len(shown) < len(placement.rejected):
        print(f"  and {len(placement.rejected) - len(shown)} more: --explain")


def announce(progress: Progress, gateway: Gateway, url: str, supervisors: Sequence[Supervisor]) -> None:
    """Ready: where the logs are, the address, and a first request to copy."""
    for supervisor in supervisors:
        progress.say(f"{supervisor.placement.spec.name}: log {supervisor.placement.spec.log_path}")
    progress.say(f"ready in {progress.elapsed_s():.0f} s")
    say_door(partial(progress.console.print, highlight=False, markup=False, soft_wrap=True), gateway, url)
    say(first_request(url, supervisors[0].placement.spec.served_model_name, with_key=bool(gateway.config.keys)))


def first_request(url: str, model: str, *, with_key: bool) -> str:
    """A curl line to copy."""
    key = '  -H "Authorization: Bearer $BERTH_API_KEY" \\\n' if with_key else ""
    question = '"messages": [{"role": "user", "content": "What is the capital of France?"}]'
    return (
        f"\ncurl -N {url}/v1/chat/completions -H 'content-type: application/json' \\\n{key}"
        f'  -d \'{{"model": "{model}", "stream": true, {question}}}\'\n'
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
