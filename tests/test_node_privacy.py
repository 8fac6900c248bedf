"""Nothing that names a patient gets into a log: pseudonyms, the filter, and the calls in the node's own code."""

from __future__ import annotations

import ast
import io
import logging
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import cspine.node
from cspine.errors import UsageError
from cspine.node.audit import Outcome
from cspine.node.privacy import PrivateFilter, Pseudonyms, plain

KEY = bytes(range(32))
identifiers = st.one_of(
    st.from_regex(r"[A-Z][a-z]{3,12}\^[A-Z][a-z]{3,12}", fullmatch=True),
    st.from_regex(r"1\.2\.\d{3,6}\.\d{4,9}\.\d{4,9}", fullmatch=True),
    st.from_regex(r"[A-Z]{2}-?\d{5,9}", fullmatch=True),
    st.text(min_size=6),
)


@contextmanager
def log(name: str = "cspine.node.test") -> Iterator[tuple[logging.Logger, io.StringIO]]:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.addFilter(PrivateFilter(Pseudonyms(KEY)))
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield logger, out
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def test_a_pseudonym_is_stable_short_and_differs_by_key_and_kind() -> None:
    one = Pseudonyms(KEY)
    assert one.of("study", "1.2.3") == one.of("study", "1.2.3") != one.of("study", "1.2.4")
    assert one.of("study", "1.2.3") != Pseudonyms(bytes(32)).of("study", "1.2.3")
    assert one.of("study", "1").removeprefix("study-") != one.of("series", "1").removeprefix("series-")
    assert len(one.of("study", "1.2.3")) == len("study-") + 16


def test_a_pseudonym_can_be_a_uid() -> None:
    uid = Pseudonyms(KEY).uid("study", "1.2.3")
    assert uid.startswith("2.25.") and len(uid) <= 64 and int(uid[5:]) < 2**128


def test_the_key_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "pseudonyms"
    first = Pseudonyms.from_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Pseudonyms.from_file(path).of("a", "b") == first.of("a", "b")


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    Pseudonyms.from_file(path)
    path.chmod(0o644)
    with pytest.raises(UsageError, match="others may read"):
        Pseudonyms.from_file(path)


@pytest.mark.parametrize("text", ["", "00", "zz" * 32, "é"])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="hexadecimal"):
        Pseudonyms.from_file(path)


@given(identifiers)
def test_no_identifier_given_to_a_log_call_is_printed(value: str) -> None:
    assume(value.strip() not in ("", "of", "study", "received", "text", "None"))
    assume(value not in "0 instances of text- received, sender 'odd': [ValueError at test_node_privacy.py:]")
    with log() as (logger, out):
        logger.warning("%d instances of %s received", 3, value)
        logger.warning("sender %(who)r odd", {"who": value})
        logger.warning("%s and %s", value)  # noqa: PLE1206 (arguments that do not fit)
        logger.warning("a list %s", [value])
        try:
            raise ValueError(value)
        except ValueError:
            logger.exception("it failed for %s", value)
        logger.warning("cause %s", ValueError(value), extra={"note": value}, stack_info=True)
    assert value not in out.getvalue()


@given(identifiers)
def test_messages_of_other_libraries_are_withheld_whole(value: str) -> None:
    assume(value not in "pynetdicom.dul line 0123456789: message withheld [ValueError at test_node_privacy.py:]")
    with log("pynetdicom.dul") as (logger, out):
        logger.warning(f"peer sent {value}")
        try:
            raise ValueError(value)
        except ValueError as error:
            logger.exception(error)
    assert value not in out.getvalue()
    assert "pynetdicom.dul line" in out.getvalue() and "ValueError" in out.getvalue()


def test_what_is_safe_stays_readable() -> None:
    with log() as (logger, out):
        logger.warning("%d of %s by %s: %s", 3, Pseudonyms(KEY).of("study", "1"), plain("pacs"), Outcome.FAILURE)
    assert out.getvalue().startswith("3 of study-") and "by pacs: failure" in out.getvalue()


def calls_of_loggers() -> Iterator[tuple[str, ast.Call]]:
    folder = Path(cspine.node.__file__).parent
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            logger, method = node.func.value, node.func.attr
            is_logger = isinstance(logger, ast.Name) and logger.id.strip("_").upper() in ("LOG", "LOGGER")
            if is_logger and method in ("debug", "info", "warning", "error", "exception", "critical", "log"):
                yield f"{path.name}:{node.lineno}", node


def test_every_log_call_of_the_node_has_a_literal_template() -> None:
    calls = list(calls_of_loggers())
    assert calls
    for where, call in calls:
        template = call.args[0]
        assert isinstance(template, ast.Constant) and isinstance(template.value, str), where
