"""`berth size`: whether a model fits on a card or on this machine, and how fast it is, from its metadata alone."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from serving.calibration_table import current
from serving.commands.common import failing_in_one_line
from serving.commands.flags import stated_release, token_flag
from serving.environment import Environment
from sizing.calibration import Calibration
from sizing.compare import Outlook, Workload
from sizing.detect import Machine, detect
from sizing.document import as_json as document
from sizing.errors import QuestionError, SizingError
from sizing.gpu import Device
from sizing.hub import load_model
from sizing.outlook import outlook
from sizing.plan import answer
from sizing.question import Answer, Question
from sizing.questions import ASKED, Sources, read_question
from sizing.report import render
from sizing.speed_report import render_speed

FITS, DOES_NOT_FIT = 0, 1  # a question that cannot be answered is 2, as everywhere


def size(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="A model folder, or a Hub id such as Qwen/Qwen3-8B.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="A card of the catalogue, such as H200. Default: what is here.")
    ] = None,
    gpu_total_gib: Annotated[
        float | None, typer.Option(help="Its memory as the driver shows it, also for a card of no catalogue.")
    ] = None,
    gpu_free_gib: Annotated[float | None, typer.Option(help="What others leave of it. Default: all.")] = None,
    count: Annotated[int | None, typer.Option(help="How many of them. Default: 1, or as many as are here.")] = None,
    tensor_parallel_size: Annotated[int | None, typer.Option(help="Cards per engine. Default: the fewest.")] = None,
    pipeline_parallel_size: Annotated[int | None, typer.Option(help="Stages that the layers are dealt to.")] = None,
    enable_expert_parallel: Annotated[
        bool, typer.Option("--enable-expert-parallel", help="Experts whole, dealt out to the cards.")
    ] = False,
    data_parallel_size: Annotated[
        int | None, typer.Option(help="Engines of those sizes, which deal the experts out among them.")
    ] = None,
    max_model_len: Annotated[str | None, typer.Option(help="Tokens per request: 8192, 32k, or auto.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests in one step.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens in one step.")] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help="Share of the card, 0 to 1.")] = None,
    kv_cache_memory_bytes: Annotated[int | None, typer.Option(help="Bytes of KV cache, instead of a share.")] = None,
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, bfloat16, fp8, ... as vLLM takes it.")] = "auto",
    quantization: Annotated[str | None, typer.Option(help="Such as fp8, awq, gptq, nvfp4: as if packed so.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    block_size: Annotated[int | None, typer.Option(help="Tokens in a block. Default: the kernel's.")] = None,
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="No CUDA graphs.")] = False,
    speculative_config: Annotated[
        str | None, typer.Option(help="What drafts tokens: JSON, as vLLM's flag takes it.")
    ] = None,
    enable_lora: Annotated[bool, typer.Option("--enable-lora", help="With room for LoRA adapters.")] = False,
    max_loras: Annotated[int | None, typer.Option(help="Adapters in one batch. Default: 1.")] = None,
    max_lora_rank: Annotated[int | None, typer.Option(help="The highest rank of them. Default: 16.")] = None,
    fully_sharded_loras: Annotated[
        bool, typer.Option("--fully-sharded-loras", help="Adapters divided over all cards.")
    ] = False,
    vllm_version: Annotated[str | None, typer.Option(help="Whose rules, 0.6 to 0.32. Default: the newest.")] = None,
    prompt_tokens: Annotated[
        str, typer.Option(help="Of one request, such as 1024 or 1k, for speed and price.")
    ] = "1024",
    output_tokens: Annotated[str, typer.Option(help="Of one answer.")] = "256",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Many questions instead: one JSON object per line; - for standard input.")
    ] = None,
    configs: Annotated[
        Path | None, typer.Option(help="With --questions: a JSON object of config.json by model, looked at first.")
    ] = None,
    calibration: Annotated[bool, typer.Option(help="Correct by the start-up logs seen before.")] = True,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page to this file.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write one self-contained picture to this file.")] = None,
) -> None:
    """Say whether MODEL fits, with every term of the sum and the lines vLLM will log, and how fast it will be.

    Cards side by side: berth size compare. Start-up logs into better answers: berth size calibrate.
    Exits with 0 when it fits, 1 when it does not, and 2 when the question cannot be answered.
    """
    with failing_in_one_line("berth size", SizingError):
        table = current(Environment()) if calibration else None
        if questions is not None:
            if model is not None:
                raise QuestionError(f"both a model ({model}) and --questions; ask about one model, or many by the file")
            from serving.commands.size_questions import answer_questions  # most questions are one

            raise typer.Exit(answer_questions(questions, configs, sources(table), as_json=json))
        if model is None:
            raise QuestionError("no model to size; give a folder, a Hub id such as Qwen/Qwen3-8B, or --questions FILE")
        if configs is not None:
            raise QuestionError("--configs says what the models of --questions are; give that too, or leave it out")
        stated_release(vllm_version)
        workload = Workload(
            token_flag(prompt_tokens, "--prompt-tokens"), token_flag(output_tokens, "--output-tokens"), concurrency=1
        )
        question = read_question(asked_row(context.params), sources(table))
        found = answer(question)
        speed = _speed(question, found, workload)
        if html is not None or svg is not None:
            from serving.commands.size_compare import write_sheet  # a page is drawn for who asks for one
            from sizing.sheet import answer_sheet

            write_sheet(answer_sheet(question, found, speed), html=html, svg=svg)
    _show(question, found, speed, workload, as_json=json)
    raise typer.Exit(FITS if found.fits else DOES_NOT_FIT)


def asked_row(flags: Mapping[str, object]) -> dict[str, object]:
    """The question's row that the flags make; those of other things are left out."""
    row = {key: value for key, value in flags.items() if key in ASKED}
    length = row.get("max_model_len")
    if isinstance(length, str) and length not in ("auto", "-1"):
        row["max_model_len"] = token_flag(length, "--max-model-len")
    elif length is not None:
        row["max_model_len"] = "auto"
    here = row.get("gpu") is None and row.get("gpu_total_gib") is None
    return {**row, "detected": True if here else None}


def _show(question: Question, found: Answer, speed: Outlook | None, workload: Workload, *, as_json: bool) -> None:
    if as_json:
        typer.echo(orjson.dumps(document(question, found, speed), option=orjson.OPT_INDENT_2).decode())
        return
    console = Console(highlight=False)
    console.print(render(question, found), soft_wrap=True)
    if speed is not None:
        console.print(
            render_speed(question, found, speed, workload.prompt_tokens, workload.output_tokens), soft_wrap=True
        )


def sources(table: Calibration | None) -> Sources:
    """Models by folder or Hub id, this machine's cards, and the user's own corrections."""
    return Sources(
        load=lambda ref, revision: load_model(ref, revision=revision),
        load_head=lambda ref, revision, head: load_model(ref, revision=revision, head=head),
        machine=lambda: detected(detect()),
        corrections=table if table is not None and table.entries else None,
    )


def _speed(question: Question, found: Answer, workload: Workload) -> Outlook | None:
    """None where it does not fit, or where a figure of the card that speed depends on is not published."""
    if not found.fits or question.device.kind == "cpu":
        return None
    try:
        return outlook(question, found, workload)
    except SizingError:  # a card of no catalogue has no figures at all
        return None


def detected(machine: Machine) -> tuple[Device, int]:
    """The most numerous kind of card here and how many there are, or the processor.

    The fullest card speaks for its kind: tensor parallel ranks all take the same.
    """
    if not machine.gpus:
        return machine.cpu, 1
    name, number = Counter(card.name for card in machine.gpus).most_common(1)[0]
    cards = [card for card in machine.gpus if card.name == name]
    return min(cards, key=lambda card: card.free_bytes), number
