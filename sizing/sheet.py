"""What one picture or page shows, gathered: options with their answers, matrices, speed, money and assumptions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sizing.choice import cheapest
from sizing.compare import Column, Comparison, Option, Outlook, Row
from sizing.compare_report import remarks
from sizing.figures import HEADINGS, dollars, figure
from sizing.gpu import GIB
from sizing.matrix import Matrix, contexts_by_concurrency, models_by_gpus, short_name
from sizing.model import ModelShape
from sizing.question import Answer, Question


@dataclass(frozen=True)
class Shown:
    """One option on the sheet."""

    label: str
    question: Question
    answer: Answer
    outlook: Outlook | None = None


@dataclass(frozen=True)
class Tile:
    """One thing to take away: what it is, the figure, and what it rests on."""

    heading: str
    text: str
    under: str


@dataclass(frozen=True)
class Sheet:
    """Ready to be drawn. `lead` is the answer in a sentence."""

    title: str
    lead: str
    facts: str
    tiles: tuple[Tile, ...]
    shown: tuple[Shown, ...]
    comparison: Comparison | None
    matrices: tuple[Matrix, ...]
    assumptions: tuple[str, ...]


def answer_sheet(question: Question, answer: Answer, outlook: Outlook | None = None) -> Sheet:
    """One answer, with the matrix of contexts by concurrency on its cards."""
    cards = f"{question.count}x{question.device.name}" if question.count > 1 else question.device.name
    name = short_name(question.model.name)
    return Sheet(
        title=f"{name} on {cards}",
        lead=_lead(question, answer),
        facts=_facts(question),
        tiles=tuple(_answer_tiles(question, answer)),
        shown=(Shown(cards, question, answer, outlook),),
        comparison=None,
        matrices=(contexts_by_concurrency(question),),
        assumptions=(*_memory_assumptions(question), *_notes(answer), *_speed_assumptions(outlook)),
    )


def comparison_sheet(comparison: Comparison, matrices: tuple[Matrix, ...]) -> Sheet:
    """Cards side by side."""
    rows = comparison.rows
    shown = tuple(Shown(row.option.label, row.question, row.answer, row.outlook) for row in rows if row.answer)
    fitting = sum(row.answer is not None and row.answer.fits for row in rows)
    outlook = next((row.outlook for row in rows if row.outlook), None)
    prices = sorted({_price_line(row) for row in rows if row.money})
    return Sheet(
        title=f"{short_name(comparison.model.name)}: which cards?",
        lead=_comparison_lead(comparison, fitting),
        facts=_facts(rows[0].question),
        tiles=tuple(_comparison_tiles(comparison)),
        shown=shown,
        comparison=comparison,
        matrices=matrices,
        assumptions=(
            *_memory_assumptions(rows[0].question),
            *_speed_assumptions(outlook, listed=False),
            *remarks(comparison),
            *prices,
        ),
    )


def comparison_matrices(
    comparison: Comparison, models: Sequence[ModelShape] = (), options: Sequence[Option] = ()
) -> tuple[Matrix, ...]:
    """Contexts by concurrency on the cheapest cards (else the first that fit), and models by GPUs where several."""
    choice = cheapest(comparison)
    fitting = [row for row in comparison.rows if row.answer is not None and row.answer.fits]
    found = []
    if choice is not None or fitting:
        row = choice.row if choice is not None else fitting[0]
        found.append(contexts_by_concurrency(replace(row.question, max_model_len=None)))
    if len(models) > 1:
        base = comparison.rows[0].question
        found.append(models_by_gpus(base, models, options))
    return tuple(found)


def _lead(question: Question, answer: Answer) -> str:
    if not answer.fits:
        close = "" if answer.certain else " It is a close call."
        way_out = f" Way out: {answer.way_out}." if answer.way_out else ""
        return f"Does not fit: {answer.reason}.{close}{way_out}"
    sure = "Fits" if answer.certain else "Fits, as a close call"
    if question.model.assumed:
        sure += ", if its layers are what they are taken for"
    return f"{sure}: {answer.holds}."


def _comparison_lead(comparison: Comparison, fitting: int) -> str:
    choice, workload = cheapest(comparison), comparison.workload
    several = f"{fitting} of {len(comparison.rows)} options fit."
    if choice is None:
        return several if workload.bound is None else f"{several} None is known to keep the SLO."
    engines = (
        f"{choice.engines} engines of {choice.row.option.label}" if choice.engines > 1 else choice.row.option.label
    )
    what = "that fits" if workload.bound is None else "within the SLO"
    if workload.bound is not None and workload.users is not None:
        what = f"for {workload.users:,} users within the SLO"
    close = ", if it fits: a close call" if choice.row.verdict == "close" else ""
    return f"{several} Cheapest {what}: {engines} at {dollars(choice.usd_per_hour)} an hour{close}."


def _facts(question: Question) -> str:
    model = question.model
    number_type = model.quantization or model.dtype
    release = f"vLLM {question.release}" + ("" if question.release.known else " (assumed)")
    return (
        f"{model.num_parameters / 1e9:.2f}B parameters in {number_type}, {model.weights_bytes / GIB:.2f} GiB "
        f"of weights by {model.weights_source}; {release}"
    )


def _answer_tiles(question: Question, answer: Answer) -> Iterator[Tile]:
    tokens, memory = answer.kv_cache_tokens_range, answer.kv_cache_bytes_range
    sure = "its layers are assumed" if question.model.assumed else "for certain"
    yield Tile("Fits", ("yes" if answer.fits else "no"), sure if answer.certain else "a close call")
    yield Tile(
        "KV cache", f"{answer.kv_cache_bytes / GIB:.2f} GiB", f"{memory.low / GIB:.2f} to {memory.high / GIB:.2f}"
    )
    yield Tile("KV tokens", f"{answer.kv_cache_tokens:,}", f"{tokens.low:,} to {tokens.high:,}")
    yield Tile("Requests at once", f"{answer.requests_fit:,}", f"of {answer.settings.max_model_len:,} tokens each")


def _comparison_tiles(comparison: Comparison) -> Iterator[Tile]:
    """The best of what was asked for, each with the card that has it."""
    choice = cheapest(comparison)
    if choice is not None:
        several = f"{choice.engines} engines, " if choice.engines > 1 else ""
        heading = "Cheapest within the SLO" if comparison.workload.bound else "Cheapest that fits"
        yield Tile(heading, choice.row.option.label, f"{several}{dollars(choice.usd_per_hour)} an hour")
    wanted: tuple[tuple[Column, str], ...] = (
        ("usd_per_million", "Cheapest per token"),
        ("tpot_s", "Quickest answers"),
        ("users", "Most users per engine"),
        ("kv_cache_tokens", "Largest KV cache"),
    )
    for column, heading in wanted:
        best = sorted(comparison.best(column))
        if best:
            found = figure(comparison, best[0], column)
            yield Tile(heading, comparison.rows[best[0]].option.label, f"{found.text} {_unit(HEADINGS[column])}")


def _unit(heading: str) -> str:
    return {"$/h": "an hour", "$/M tokens": "a million tokens", "TPOT": "per output token"}.get(heading, heading)


def _memory_assumptions(question: Question) -> Iterator[str]:
    yield "Ranges hold nine times out of ten. A close call is one whose range holds both yes and no."
    if question.release.cudagraphs_in_budget and not question.enforce_eager:
        yield "vLLM takes its own estimate for CUDA graphs off the KV cache: that is predicted, not what they use."
    yield "All bytes are those of one card; tokens, requests and speed are the whole engine's."


def _notes(answer: Answer) -> Iterator[str]:
    if answer.note:
        yield f"Note: {answer.note}."


def _speed_assumptions(outlook: Outlook | None, *, listed: bool = True) -> Iterator[str]:
    if outlook is None:
        return
    yield "Speed is a roofline with fitted efficiencies; speculative decoding and prefix-cache hits are not counted on."
    if listed and outlook.outside:
        yield f"Wider bands of speed: {'; '.join(outlook.outside)}."


def _price_line(row: Row) -> str:
    money = row.money
    if money is None:
        return ""
    price = money.price
    return (
        f"{row.option.device.name}: ${price.usd_per_hour:g} per card and hour, {price.kind}, "
        f"{price.source}, {price.as_of.isoformat()}."
    )
