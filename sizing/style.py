"""Colours and type of the picture and the page, light and dark, all of it inside the file."""

from sizing.budget_bar import PARTS, Part
from sizing.compare import Verdict

# Text on a colour has a contrast of at least 4.5 to 1, the colour on the page at least 3 to 1, in both schemes.
_LIGHT: dict[Part, str] = {
    "weights": "#2f5fc4",
    "activations": "#7a3fb0",
    "non-torch": "#8f5a00",
    "CUDA graphs": "#0e7480",
    "KV cache": "#1e7d48",
    "missing": "#c0272d",
    "held by others": "#5d6570",
    "not used": "#e4e8ed",
}
_DARK: dict[Part, str] = {
    "weights": "#7ea8ff",
    "activations": "#c8a1f7",
    "non-torch": "#efb758",
    "CUDA graphs": "#62cfdb",
    "KV cache": "#62d39b",
    "missing": "#ff8a8a",
    "held by others": "#9aa3af",
    "not used": "#2c333d",
}
_LINES_LIGHT = ("#2f5fc4", "#b1440e", "#1e7d48", "#7a3fb0", "#0e7480", "#a3195b", "#8f5a00", "#40474f")
_LINES_DARK = ("#7ea8ff", "#ff9a62", "#62d39b", "#c8a1f7", "#62cfdb", "#ff8fc0", "#efb758", "#c3cad3")
DASHES = ("", "8 3", "3 3", "10 3 3 3", "14 4", "5 2", "12 3 3 3 3 3", "6 6")
"""Told apart without colour too."""
NUM_LINES = len(_LINES_LIGHT)
_LIGHT_PAGE = {
    "page": "#ffffff",
    "panel": "#f6f8fa",
    "ink": "#16202b",
    "soft": "#4d5966",
    "rule": "#d5dbe2",
    "on": "#ffffff",
    "fits": "#17663a",
    "fits-wash": "#e3f4ea",
    "close": "#7a4b00",
    "close-wash": "#fdf0d5",
    "no": "#a01c22",
    "no-wash": "#fbe6e6",
    "best": "#17663a",
}
_DARK_PAGE = {
    "page": "#11161c",
    "panel": "#19202a",
    "ink": "#e8edf3",
    "soft": "#a9b4c0",
    "rule": "#333d49",
    "on": "#0b0f14",
    "fits": "#7fe0ae",
    "fits-wash": "#14301f",
    "close": "#f2c36b",
    "close-wash": "#352709",
    "no": "#ff9c9c",
    "no-wash": "#3a1719",
    "best": "#7fe0ae",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def part_class(part: Part) -> str:
    return f"p{PARTS.index(part)}"


def verdict_class(verdict: Verdict) -> str:
    return f"v-{verdict}"


def variables(root: str) -> str:
    """Custom properties of both schemes on the selector `root`."""
    light = _declared(_LIGHT_PAGE, _LIGHT, _LINES_LIGHT)
    dark = _declared(_DARK_PAGE, _DARK, _LINES_DARK)
    return (
        f"{root}{{color-scheme:light dark;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{{root}{{{dark}}}}}\n"
        f"@media print{{{root}{{{light}}}}}\n"
    )


def _declared(page: dict[str, str], parts: dict[Part, str], lines: tuple[str, ...]) -> str:
    named = [f"--{name}:{colour};" for name, colour in page.items()]
    named += [f"--{part_class(part)}:{colour};" for part, colour in parts.items()]
    named += [f"--l{at}:{colour};" for at, colour in enumerate(lines)]
    return "".join(named)


def shapes() -> str:
    """Classes for what is drawn as SVG: fills by part and verdict, lines, text."""
    fills = "".join(f".{part_class(part)}{{fill:var(--{part_class(part)})}}" for part in PARTS)
    lines = "".join(
        f".l{at}{{stroke:var(--l{at});stroke-dasharray:{dash or 'none'}}}.b{at}{{fill:var(--l{at})}}"
        for at, dash in enumerate(DASHES)
    )
    washes = "".join(f".v-{name}{{fill:var(--{name}-wash)}}.t-{name}{{fill:var(--{name})}}" for name in _VERDICTS)
    return (
        f"svg text{{font-family:{FONT};fill:var(--ink)}}svg .soft{{fill:var(--soft)}}svg .on{{fill:var(--on)}}"
        ".line{fill:none;stroke-width:2}.band{opacity:.13;stroke:none}.grid{stroke:var(--rule);stroke-width:1}"
        ".limit{stroke:var(--ink);stroke-width:2}.over{stroke:var(--no);stroke-width:2;stroke-dasharray:4 3}"
        ".edge{fill:none;stroke:var(--soft);stroke-width:1}" + fills + lines + washes
    )


_VERDICTS = ("fits", "close", "no")
