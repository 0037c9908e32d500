"""`berth size plan`: every way to serve a model on some cards, ranked, and why not the others."""

from collections.abc import Iterator
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from serving.calibration_table import current
from serving.commands.common import failing_in_one_line
from serving.commands.flags import latency_bound, stated_release, token_flag
from serving.environment import Environment
from sizing.adapter_settings import read_adapters
from sizing.compare import option
from sizing.detect import detect
from sizing.document import as_json
from sizing.drafters import Drafter
from sizing.errors import QuestionError, SizingError
from sizing.goal import Goal
from sizing.gpu import Device
from sizing.hub import load_model
from sizing.islands import like_cards
from sizing.model import ModelShape
from sizing.options import options
from sizing.question import Question
from sizing.ranking import Option, Options, Want
from sizing.speculation import drafter, read_speculation
from sizing.weights import quantized

SOME_FIT, NONE_FITS = 0, 1
_MOST_CARDS = 128
_WIDTH_OF_A_TABLE = 110


def plan(
    model: Annotated[str, typer.Argument(help="A model folder, or a Hub id such as Qwen/Qwen3-8B.")],
    cards: Annotated[
        str | None, typer.Option(help="The box, such as 4xL40S or 2xRTX4090,H100. Default: the cards that are here.")
    ] = None,
    max_model_len: Annotated[
        str | None,
        typer.Option(
            help="Tokens that each request may take. Default: the model's own; requests then are as long as"
            " prompt and answer."
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests in flight, over all engines.")] = 16,
    replicas: Annotated[int | None, typer.Option(help="Engines. Default: as many as the concurrency needs.")] = None,
    prompt_tokens: Annotated[str, typer.Option(help="Of one request, such as 1024 or 1k.")] = "1024",
    output_tokens: Annotated[str, typer.Option(help="Of one answer.")] = "256",
    slo: Annotated[str | None, typer.Option(help="Bounds of the means in seconds, such as ttft=2,tpot=0.05.")] = None,
    speculative_config: Annotated[
        str | None, typer.Option(help="What drafts tokens: JSON, as vLLM's flag takes it.")
    ] = None,
    enable_lora: Annotated[bool, typer.Option("--enable-lora", help="With room for LoRA adapters.")] = False,
    max_loras: Annotated[int | None, typer.Option(help="Adapters in one batch. Default: 1.")] = None,
    max_lora_rank: Annotated[int | None, typer.Option(help="The highest rank of them. Default: 16.")] = None,
    vllm_version: Annotated[str | None, typer.Option(help="Whose rules. Default: the newest.")] = None,
    quantize: Annotated[bool, typer.Option(help="Offer fp8 weights and an fp8 KV cache where that is needed.")] = True,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Rank every way to serve MODEL on these cards; `berth serve` takes the first.

    Exits with 0 when there is one, 1 when there is none, and 2 when the question cannot be answered.
    """
    with failing_in_one_line("berth size plan", SizingError):
        box = _box(cards)
        bound = latency_bound(slo) if slo else None
        goal = Goal(
            token_flag(prompt_tokens, "--prompt-tokens"),
            token_flag(output_tokens, "--output-tokens"),
            concurrency,
            ttft_s=bound.ttft_s if bound else None,
            tpot_s=bound.tpot_s if bound else None,
        )
        table = current(Environment())
        shape = load_model(model, revision=revision)
        question = Question(
            model=shape,
            speculative=None if speculative_config is None else read_drafter(speculative_config, shape),
            adapters=read_adapters(
                {"enable_lora": enable_lora, "max_loras": max_loras, "max_lora_rank": max_lora_rank}
            ),
            device=box[0],
            max_model_len=None if max_model_len is None else token_flag(max_model_len, "--max-model-len"),
            release=stated_release(vllm_version),
            corrections=table if table.entries else None,
        )
        if replicas is not None and replicas < 1:
            raise QuestionError(f"--replicas is {replicas}; it has to be at least 1")
        request_tokens = None if question.max_model_len else int(goal.prompt_tokens + goal.output_tokens)
        want = Want(concurrency, request_tokens, replicas)
        found = options(question, box, want, quantized=quantized if quantize else None, forecast=goal.expected)
    if json:
        typer.echo(orjson.dumps(_document(found), option=orjson.OPT_INDENT_2).decode())
    else:
        _show(Console(highlight=False), found)
    raise typer.Exit(SOME_FIT if found.best else NONE_FITS)


def read_drafter(text: str, model: ModelShape) -> Drafter:
    """What `--speculative-config` says drafts for the model. Raises SizingError."""
    return drafter(
        read_speculation(text), model, lambda ref, revision, head: load_model(ref, revision=revision, head=head)
    )


def _box(text: str | None) -> tuple[Device, ...]:
    if text is None:
        here = detect().gpus
        if not here:
            raise QuestionError("this machine has no GPU; name a box by --cards, such as 4xL40S")
        return here
    kinds: dict[Device, int] = {}  # one that is named twice is more of the same, not the same cards again
    for named in (option(part) for part in text.split(",") if part.strip()):
        kinds[named.device] = kinds.get(named.device, 0) + named.count
    if not kinds:
        raise QuestionError("--cards names none; write such as 4xL40S or 2xRTX4090,H100")
    cards = sum(kinds.values())
    if cards > _MOST_CARDS:
        raise QuestionError(
            f"--cards is {cards:,} cards; plan one machine of them, {_MOST_CARDS} cards at most, and repeat it"
        )
    return tuple(card for device, count in kinds.items() for card in like_cards(device, count))


def _show(console: Console, found: Options) -> None:
    if found.ranked and console.width >= _WIDTH_OF_A_TABLE:
        console.print(_table(found))
    elif found.ranked:
        console.print("Ways that work, best first", *_blocks(found), sep="\n", markup=False)
    for rejected in found.why_not:
        console.print(f"not {rejected.what}: {rejected.why}", soft_wrap=True, markup=False)


def _headings(found: Options) -> tuple[str, ...]:
    tokens = found.ranked[0].want.request_tokens
    requests = f"requests of {tokens:,} tokens" if tokens else "requests"
    return "on", "KV tokens", "context", requests, "output tok/s", "and"


def _table(found: Options) -> Table:
    table = Table(title="Ways that work, best first", title_justify="left")
    table.add_column("", justify="right", no_wrap=True)
    on, *figures, notes = _headings(found)
    table.add_column(on, no_wrap=True)
    for name in figures:
        table.add_column(name.replace("of ", "of\n"), justify="right", no_wrap=True)
    table.add_column(notes, overflow="fold")
    for place, way in enumerate(found.ranked, 1):
        table.add_row(str(place), *_cells(way))
    return table


def _blocks(found: Options) -> Iterator[str]:
    """The table for a screen that it is too wide for."""
    _, *names, _ = _headings(found)
    for place, way in enumerate(found.ranked, 1):
        yield f"{place}. {way}"
        _, *figures, notes = _cells(way)
        yield from (f"   {figure} {name}" for figure, name in zip(figures, names, strict=True))
        if notes:
            yield f"   {notes}"


def _cells(way: Option) -> tuple[str, ...]:
    found = way.answer
    notes = [*way.variant.costs, *([] if way.sure else ["a close call"]), *([way.shortfall] if way.shortfall else [])]
    return (
        str(way).replace(", ", ",\n"),
        f"{sum(engine.answer.kv_cache_tokens for engine in way.engines):,}",
        f"{found.settings.max_model_len:,}",
        f"{way.seats:,}",
        f"{way.expected.output_tokens_s:,.0f}" if way.expected else "-",
        "; ".join(notes),
    )


def _document(found: Options) -> dict[str, object]:
    return {
        "ranked": [
            {
                "on": str(way),
                "cards": [card.name for card in way.cards],
                "replicas": way.replicas,
                "certain": way.sure,
                "shortfall": way.shortfall,
                "costs": list(way.variant.costs),
                "requests": way.seats,
                "request_tokens": way.request_tokens,
                "output_tokens_s": way.expected.output_tokens_s if way.expected else None,
                "answer": as_json(way.question, way.answer),
            }
            for way in found.ranked
        ],
        "why_not": [{"what": each.what, "why": each.why} for each in found.why_not],
    }
