"""What a password must be: long, and none that everybody guesses first (NIST SP 800-63B 5.1.1.2, OWASP ASVS 2.1)."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path

from cspine.web.settings import Password
from cspine.web.strings import t

# argon2 takes longer the longer the text; nobody types more than this.
LONGEST = 128
# What people put into passwords when they have to think of one; digits and signs around do not make them better.
_WORDS = """
password passwort passphrase passwd letmein welcome admin administrator qwerty qwertyuiop qwertz azerty asdfgh asdfghjkl
zxcvbnm iloveyou monkey dragon sunshine princess football baseball superman master login secret changeme default
hospital radiology radiologist radiologie doctor cspine spine vertebra xray summer winter spring autumn january february
march april june july august september october november december
"""
_STEMS = frozenset(_WORDS.split())
_RUNS = ("abcdefghijklmnopqrstuvwxyz", "01234567890123456789", "qwertyuiop", "qwertzuiop", "asdfghjkl", "zxcvbnm")
_LETTERS = str.maketrans({"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i"})


def normal(password: str) -> str:
    """The same characters whatever the keyboard composes them of (Unicode NFKC)."""
    return unicodedata.normalize("NFKC", password)


def faults(password: str, settings: Password, *, email: str = "", name: str = "") -> list[str]:
    """Why a password cannot be taken, for the person; empty when it can.

    Args:
        password: as typed.
        settings: how long it must be, and the list of forbidden ones.
        email: of the account; neither it nor its parts make a password.
        name: of the person, likewise.
    """
    text = normal(password)
    if len(text) < settings.min_length:
        return [t("account.password.short", count=settings.min_length)]
    if len(text) > LONGEST:
        return [t("account.password.long", count=LONGEST)]
    if _guessable(text, settings.min_length, _own_words(email, name)):
        return [t("account.password.common")]
    if settings.forbidden_file is not None and text.casefold() in _forbidden(settings.forbidden_file):
        return [t("account.password.common")]
    return []


def _own_words(email: str, name: str) -> frozenset[str]:
    words = re.split(r"[^\w]+", f"{email} {name}".casefold())
    return frozenset(word for word in words if len(word) >= 3)


def _guessable(text: str, shortest: int, own: frozenset[str]) -> bool:
    """Whether little is left of it once repetitions, rows of the keyboard and the usual words are taken out."""
    low = text.casefold()
    if len(set(low)) < 5:
        return True
    for run in _RUNS:
        for row in (run, run[::-1]):
            for length in range(len(row), 3, -1):
                for start in range(len(row) - length + 1):
                    low = low.replace(row[start : start + length], "")
    low = re.sub(r"(.+?)\1{2,}", r"\1", low)
    for form in (low, low.translate(_LETTERS)):
        rest = form
        for word in sorted(_STEMS | own, key=len, reverse=True):
            rest = rest.replace(word, "")
        if len(re.sub(r"[\W\d_]+", "", rest)) < 3 and len(rest) < shortest:
            return True
    return False


@cache
def _forbidden(path: Path) -> frozenset[str]:
    return frozenset(normal(line.strip()).casefold() for line in path.read_text(encoding="utf-8").splitlines())
