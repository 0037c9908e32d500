"""Flags that several commands take, as people write them: tokens, bounds, prices, a release."""

from serving.quantity import token_count
from sizing.cost import ApiPrice
from sizing.errors import QuestionError
from sizing.release import OLDEST, Release, parse_release
from sizing.users import LatencyBound


def latency_bound(text: str) -> LatencyBound:
    """Bounds as people write them, "ttft=2,tpot=0.05" or "ttft=800ms".

    Raises:
        QuestionError: not such bounds.
    """
    bounds: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in ("ttft", "tpot"):
            raise QuestionError(f"--slo {text!r}: {name!r} is no bound; write ttft=2,tpot=0.05 in seconds")
        bounds[name] = positive(value, f"--slo {text!r}")
    return LatencyBound(ttft_s=bounds.get("ttft"), tpot_s=bounds.get("tpot"))


def parse_api_price(text: str) -> ApiPrice:
    """Dollars per million prompt and output tokens, "0.5,1.5".

    Raises:
        QuestionError: not two amounts.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2:
        raise QuestionError(f"--api-price {text!r} is not two amounts; write dollars for prompt and output, 0.5,1.5")
    prices = [positive(part.removeprefix("$"), f"--api-price {text!r}") for part in parts]
    return ApiPrice(*prices)


def positive(text: str, where: str) -> float:
    """A number above 0, a time in s or ms among them; `where` is what an error names.

    Raises:
        QuestionError: not such a number.
    """
    scale, number = (1e-3, text[:-2]) if text.endswith("ms") else (1.0, text.removesuffix("s"))
    try:
        value = float(number) * scale
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise QuestionError(f"{where}: {text!r} is not a number above 0")
    return value


def stated_release(text: str | None) -> Release:
    """The release that `--vllm-version` names; the newest, as an assumption, where it is not given.

    Raises:
        QuestionError: no version. A log may say "nightly", but who asks can say what is meant.
    """
    release = parse_release(text)
    if text is not None and not release.known:
        raise QuestionError(f"--vllm-version {text!r} is no version of vLLM; write such as 0.29 or 0.11.2")
    if release < OLDEST:
        raise QuestionError(f"--vllm-version {text!r} is older than what is sized; ask for {OLDEST} or newer")
    return release


def token_flag(text: str, name: str) -> int:
    """A number of tokens of at least one, as people write it; `name` is the flag that an error names.

    As in vLLM, `k` is 1,000 and `K` is 1,024 (and `m`, `M` squared).

    Raises:
        QuestionError: not such a number.
    """
    found = token_count(text)
    if not found:
        raise QuestionError(f"{name} {text!r} is not a number of tokens; write 8192, 32k (32,000) or 32K (32,768)")
    return found
