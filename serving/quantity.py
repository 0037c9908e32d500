"""Numbers as people write them."""

import re

_FACTORS = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}


def token_count(text: str) -> int | None:
    """`8192`, `8_192`, `32k` (32,000) or `32K` (32,768), as vLLM reads them; None for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text.strip().replace(",", "").replace("_", ""))
    return None if match is None else int(float(match[1]) * _FACTORS[match[2]])
