"""`berth size compare`: cards side by side for one model; and the files that `--html` and `--svg` name."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from serving.calibration_table import current
from serving.commands.common import failing_in_one_line
from serving.commands.flags import latency_bound, parse_api_price, positive, stated_release, token_flag
from serving.environment import Environment
from sizing.compare import Comparison, Forecaster, Owned, Pricing, Workload, bought, given, listed, options_named
from sizing.compare import compare as compared
from sizing.compare_report import render_comparison, render_matrix
from sizing.cost import ApiPrice
from sizing.document import comparison_json
from sizing.errors import QuestionError, SizingError
from sizing.hub import load_model
from sizing.memory import Corrections
from sizing.model import ModelShape
from sizing.outlook import outlook
from sizing.page import html_page
from sizing.picture import svg_picture
from sizing.question import Question
from sizing.sheet import Sheet, comparison_matrices, comparison_sheet

SOME_FIT, NONE_FITS = 0, 1


def compare(
    model: Annotated[str, typer.Argument(help="A model folder, or a Hub id such as Qwen/Qwen3-8B.")],
    gpus: Annotated[str, typer.Option(help="Cards of the catalogue, such as L4,A100-80GB,H100,2xH100.")],
    also: Annotated[list[str] | None, typer.Option(help="Another model, for the matrix of models by GPUs.")] = None,
    max_model_len: Annotated[
        str | None, typer.Option(help="Tokens per request. Default: the prompt and output tokens together.")
    ] = None,
    prompt_tokens: Annotated[str, typer.Option(help="Of one request, such as 1024 or 1k.")] = "1024",
    output_tokens: Annotated[str, typer.Option(help="Of one answer.")] = "256",
    concurrency: Annotated[int, typer.Option(help="Requests in flight that speed is told at.")] = 16,
    users: Annotated[int | None, typer.Option(help="People to serve: says how many engines they need.")] = None,
    think_time: Annotated[float, typer.Option(help="Seconds between an answer and the next question.")] = 30.0,
    slo: Annotated[str | None, typer.Option(help="Bounds in seconds, such as ttft=2,tpot=0.05.")] = None,
    slo_percentile: Annotated[float, typer.Option(help="Share of the requests that have to keep the SLO.")] = 0.9,
    api_price: Annotated[
        str | None, typer.Option(help="An API's dollars per million prompt and output tokens, such as 0.5,1.5.")
    ] = None,
    usd_per_hour: Annotated[
        float | None, typer.Option(help="What a card costs you, instead of the catalogue's price.")
    ] = None,
    owned: Annotated[
        str | None, typer.Option(help="Cards of your own: dollars a card, years, dollars a kWh, such as 25000,4,0.25.")
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests in one step.")] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help="Share of each card, 0 to 1.")] = None,
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16, fp8, fp8_e4m3 or fp8_e5m2.")] = "auto",
    vllm_version: Annotated[str | None, typer.Option(help="Whose rules and log lines, such as 0.29.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page to this file.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write one self-contained picture to this file.")] = None,
) -> None:
    """Say for each card whether MODEL fits, how fast it is, how many people it serves and what a token costs.

    Exits with 0 when some card is enough, 1 when none is, and 2 when the question cannot be answered.
    """
    with failing_in_one_line("berth size compare", SizingError):
        workload = Workload(
            prompt_tokens=token_flag(prompt_tokens, "--prompt-tokens"),
            output_tokens=token_flag(output_tokens, "--output-tokens"),
            concurrency=concurrency,
            users=users,
            think_time_s=think_time,
            bound=None if slo is None else latency_bound(slo),
            percentile=slo_percentile,
        )
        table = current(Environment())
        models = [load_model(model, revision=revision), *(load_model(other) for other in also or ())]
        found = side_by_side(
            models[0],
            gpus,
            workload,
            max_model_len=None if max_model_len is None else token_flag(max_model_len, "--max-model-len"),
            max_num_seqs=max_num_seqs,
            gpu_memory_utilization=gpu_memory_utilization,
            kv_cache_dtype=kv_cache_dtype,
            vllm_version=vllm_version,
            api=None if api_price is None else parse_api_price(api_price),
            pricing=_pricing(usd_per_hour, owned),
            corrections=table if table.entries else None,
        )
        matrices = comparison_matrices(found, models, [row.option for row in found.rows])
        write_sheet(comparison_sheet(found, matrices), html=html, svg=svg)
    if json:
        typer.echo(orjson.dumps(comparison_json(found, matrices), option=orjson.OPT_INDENT_2).decode())
    else:
        console = Console(highlight=False)
        console.print(render_comparison(found))
        for matrix in matrices:
            console.print(render_matrix(matrix))
    fitting = [row for row in found.rows if row.answer is not None and row.answer.fits]
    raise typer.Exit(SOME_FIT if fitting else NONE_FITS)


def side_by_side(
    model: ModelShape,
    gpus: str,
    workload: Workload,
    *,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    gpu_memory_utilization: float | None = None,
    kv_cache_dtype: str = "auto",
    vllm_version: str | None = None,
    api: ApiPrice | None = None,
    forecaster: Forecaster | None = outlook,
    pricing: Pricing = listed,
    corrections: Corrections | None = None,
) -> Comparison:
    """The comparison that the command prints; every engine is started for `max_model_len`, by default the workload's.

    Raises:
        SizingError: a card that is not known, or a question that no card could answer.
    """
    options = [chosen for text in gpus.split(",") if text.strip() for chosen in options_named(text)]
    if not options:
        raise QuestionError("no cards to compare; name them by --gpus, such as L4,H100,2xH100")
    _checked(workload)
    base = Question(
        model,
        options[0].device,
        max_model_len=max_model_len or workload.prompt_tokens + workload.output_tokens,
        max_num_seqs=max_num_seqs,
        gpu_memory_utilization=gpu_memory_utilization,
        kv_cache_dtype=kv_cache_dtype,
        release=stated_release(vllm_version),
        corrections=corrections,
    )
    return compared(base, options, workload, forecaster=forecaster, api=api, pricing=pricing)


def _pricing(usd_per_hour: float | None, owned: str | None) -> Pricing:
    """What the flags say a card costs.

    Raises:
        QuestionError: both flags, or amounts that are none.
    """
    today = datetime.now(UTC).date()
    if usd_per_hour is not None and owned is not None:
        raise QuestionError("--usd-per-hour and --owned are two prices for one card; give one of them")
    if usd_per_hour is not None:
        if not 0 < usd_per_hour < float("inf"):
            raise QuestionError(f"--usd-per-hour is {usd_per_hour:g}; it has to be above 0")
        return given(usd_per_hour, today)
    if owned is None:
        return listed
    parts = owned.split(",")
    if len(parts) != 3:
        raise QuestionError(
            f"--owned {owned!r} is not three amounts; write dollars, years and dollars a kWh: 25000,4,0.25"
        )
    return bought(Owned(*(positive(part.strip(), f"--owned {owned!r}") for part in parts)), today)


def _checked(workload: Workload) -> None:
    positive = {"--concurrency": workload.concurrency, "--users": workload.users}
    for name, value in positive.items():
        if value is not None and value < 1:
            raise QuestionError(f"{name} is {value}; it has to be at least 1")
    if workload.users is not None and workload.bound is None:
        raise QuestionError("--users are served within bounds; name them by --slo, such as ttft=2,tpot=0.05")
    if workload.percentile is not None and not 0 < workload.percentile < 1:
        raise QuestionError(f"slo_percentile is {workload.percentile:g}; write a share of requests, such as 0.9")
    if not 0 <= workload.think_time_s < float("inf"):
        raise QuestionError(f"--think-time is {workload.think_time_s:g}; it has to be 0 or more")


def write_sheet(sheet: Sheet, *, html: Path | None, svg: Path | None) -> None:
    """The page and the picture, where they are asked for.

    Raises:
        QuestionError: a file that cannot be written.
    """
    for path, made in ((html, html_page), (svg, svg_picture)):
        if path is None:
            continue
        try:
            path.write_text(made(sheet), encoding="utf-8")
        except OSError as error:
            raise QuestionError(
                f"cannot write {path}: {error.strerror}; name a file in a folder that is there and yours"
            ) from None
