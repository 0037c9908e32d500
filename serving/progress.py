"""Says what a start is doing: a live table on a terminal, one line per change elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from serving.supervisor import Supervisor
from serving.voice import fall_silent

_REFRESH_PER_S = 8


class Voice(Console):
    """Standard output, with colours and tables where it is a terminal."""

    def on_broken_pipe(self) -> None:
        """Nobody listens any more: rich's own would end the process, and with it what runs."""
        self.quiet = True
        fall_silent()


class Progress:
    """Steps before the engines (`doing`), then the engines themselves (`engines`)."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._clock = clock
        self._since = clock()
        self._said: dict[str, str] = {}

    def elapsed_s(self) -> float:
        """Since the command began."""
        return self._clock() - self._since

    def say(self, text: str) -> None:
        """One lasting line, with the time it took to get there."""
        self.console.print(f"[dim]{self.elapsed_s():5.1f} s[/dim]  {text}", highlight=False, soft_wrap=True)

    @contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """A step that takes a while: a spinner meanwhile, a line when done."""
        if self.console.is_terminal:
            with self.console.status(text):
                yield
            self.say(text)
        else:
            self.say(text)
            yield

    @contextmanager
    def engines(self, supervisors: list[Supervisor]) -> Iterator[Callable[[], None]]:
        """Show the engines coming up; call what this yields now and then."""
        if not self.console.is_terminal:
            yield lambda: self._say_changes(supervisors)
            return
        spinner = Spinner("dots")
        with Live(console=self.console, refresh_per_second=_REFRESH_PER_S, transient=True) as live:
            yield lambda: live.update(self._table(supervisors, spinner))
        self._say_changes(supervisors)

    def _say_changes(self, supervisors: list[Supervisor]) -> None:
        for supervisor in supervisors:
            name, text = supervisor.placement.spec.name, _words(supervisor)
            if text and self._said.get(name) != text:
                self._said[name] = text
                self.say(f"{name}: {text}")

    def _table(self, supervisors: list[Supervisor], spinner: Spinner) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for supervisor in supervisors:
            mark: RenderableType = "[green]✓[/green]" if supervisor.state == "ready" else spinner
            table.add_row(mark, supervisor.placement.spec.name, _words(supervisor), supervisor.placement.where)
        return Group(table, f"[dim]{self.elapsed_s():5.1f} s[/dim]")


def _words(supervisor: Supervisor) -> str:
    return supervisor.stage if supervisor.state == "starting" else supervisor.state
