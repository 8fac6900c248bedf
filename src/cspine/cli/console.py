"""How the command line speaks: results on stdout, everything else on stderr, errors as what, where and do this."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from cspine.errors import CspineError

if TYPE_CHECKING:
    from rich.console import Console

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells expect


class Verbosity(IntEnum):
    """How much is said on stderr."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2

    @classmethod
    def of(cls, *, quiet: bool, verbose: bool) -> Verbosity:
        """From the two flags that commands have; quiet wins."""
        return cls.QUIET if quiet else cls.VERBOSE if verbose else cls.NORMAL


def stderr() -> Console:
    """A console on stderr; made when used, so that tests and pipes see the stream of the moment."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def stdout() -> Console:
    """A console on stdout, for results. Never wraps when the output is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def show_error(error: CspineError, *, console: Console | None = None) -> None:
    """Print an error as what, where and do this. File names are never read as markup."""
    from rich.text import Text

    console = console or stderr()
    console.print(Text.assemble(("error: ", "bold red"), error.message), soft_wrap=True)
    for label, text in (("where", error.where), ("do", error.fix)):
        if text:
            console.print(Text.assemble((f"{label:>5}: ", "bold"), text), soft_wrap=True)
