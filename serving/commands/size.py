"""`berth size`: whether a model fits on a card or on this machine, from its metadata alone."""

from collections import Counter
from typing import Annotated

import orjson
import typer
from rich.console import Console

from serving.commands.common import failing_in_one_line
from serving.quantity import token_count
from sizing.detect import Machine, detect
from sizing.errors import QuestionError
from sizing.gpu import Device, gpu
from sizing.hub import load_model
from sizing.plan import Question, answer
from sizing.report import as_json, render

FITS, DOES_NOT_FIT = 0, 1  # a question that cannot be answered is 2, as everywhere


def size(
    model: Annotated[str, typer.Argument(help="A model folder, or a Hub id such as Qwen/Qwen3-8B.")],
    gpu_name: Annotated[
        str | None, typer.Option("--gpu", help="A card of the catalogue, such as H200. Default: what is here.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="How many of them. Default: 1, or as many as are here.")] = None,
    max_model_len: Annotated[str | None, typer.Option(help="Tokens per request, such as 8192 or 32k.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests in one step.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens in one step.")] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help="Share of the card, 0 to 1.")] = None,
    kv_cache_memory_bytes: Annotated[int | None, typer.Option(help="Bytes of KV cache, instead of a share.")] = None,
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16, fp8, fp8_e4m3 or fp8_e5m2.")] = "auto",
    tensor_parallel_size: Annotated[int | None, typer.Option(help="Cards per engine. Default: the fewest.")] = None,
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="No CUDA graphs.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say whether MODEL fits, with every term of the sum and the line vLLM will log.

    Exits with 0 when it fits, 1 when it does not, and 2 when the question cannot be answered.
    """
    with failing_in_one_line("berth size"):
        device, devices = _device(gpu_name, count)
        question = Question(
            model=load_model(model, revision=revision),
            device=device,
            count=devices,
            tensor_parallel_size=tensor_parallel_size,
            max_model_len=None if max_model_len is None else parse_tokens(max_model_len),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            gpu_memory_utilization=gpu_memory_utilization,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            kv_cache_dtype=kv_cache_dtype,
            enforce_eager=enforce_eager,
        )
        found = answer(question)
    if json:
        typer.echo(orjson.dumps(as_json(question, found), option=orjson.OPT_INDENT_2).decode())
    else:
        Console(highlight=False).print(render(question, found), soft_wrap=True)
    raise typer.Exit(FITS if found.fits else DOES_NOT_FIT)


def parse_tokens(text: str) -> int:
    """A number of tokens as people write it. As in vLLM, `k` is 1,000 and `K` is 1,024 (and `m`, `M` squared).

    Raises:
        QuestionError: not such a number.
    """
    found = token_count(text)
    if found is None:
        raise QuestionError(f"{text!r} is not a number of tokens; write 8192, 32k (32,000) or 32K (32,768)")
    return found


def _device(gpu_name: str | None, count: int | None) -> tuple[Device, int]:
    if gpu_name is not None:
        return gpu(gpu_name), 1 if count is None else count
    device, here = detected(detect())
    if count is not None and count > here:
        raise QuestionError(f"--count is {count}, but this machine has {here} of {device.name}; name a card with --gpu")
    return device, here if count is None else count


def detected(machine: Machine) -> tuple[Device, int]:
    """The most numerous kind of card here and how many there are, or the processor.

    The fullest card speaks for its kind: tensor parallel ranks all take the same.
    """
    if not machine.gpus:
        return machine.cpu, 1
    name, number = Counter(card.name for card in machine.gpus).most_common(1)[0]
    cards = [card for card in machine.gpus if card.name == name]
    return min(cards, key=lambda card: card.free_bytes), number
