"""The command line and what its commands share; one file per command."""

from __future__ import annotations

import faulthandler
import importlib
import logging
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.codec.printable import escape_controls
from pipeline.errors import (
    BrokerUnavailable,
    ConfigurationError,
    HitrouterError,
    IntakeUnavailable,
    TopicMismatch,
)
from pipeline.process.json_log import JsonFormatter
from pipeline.process.log_format import JSON, OPTION, PROCESS_VARIABLE, TEXT, log_format_of
from pipeline.process.modes import set_private_umask
from pipeline.process.parent import report_exit_reason
from pipeline.process.stop import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config import Config, Watched
    from pipeline.config.load import KeptVersion

logger = logging.getLogger(__name__)

# fmt: off
_COMMANDS = (
    "up", "demo", "intake", "route", "deliver", "kafka", "validate", "try", "tail", "explain", "dead-letters", "replay",
    "ledger", "topics", "destinations", "fault-server", "setup", "schema",
)
# fmt: on


class _Lazy(click.Group):
    """A group that imports only the requested command, so that each command starts quickly."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        # `try` is a keyword of Python, so its module has another name.
        file = "try_hit" if cmd_name == "try" else cmd_name.replace("-", "_")
        module = importlib.import_module(f"pipeline.cli.{file}")
        command: click.Command = module.command
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hitrouter")
@click.option(  # only for --help: main() of pipeline/__main__.py handles it
    OPTION,
    type=click.Choice([TEXT, JSON]),
    default=TEXT,
    show_default=True,
    expose_value=False,
    help="Format of log lines; allowed after the command, too.",
)
def cli() -> None:
    """Receive tracking hits over HTTP or Kafka, store each exactly once, and deliver it to the destinations it names."""


def load_checked(file: Path, warn: Callable[[str], object] = lambda line: None) -> Config:
    """Return the checked configuration. `warn` receives a line for each valid setting that is probably a mistake."""
    from pipeline.config import checked  # imported here to keep --help fast

    return checked.load_checked(file, warn=warn)


def load_to_read(file: Path, *, strict: bool = False) -> Config:
    """Return the checked configuration for a read-only command, which needs no secrets; see pipeline/config/load.py.

    If the file is invalid, returns its last good version and prints a warning on stderr. With `strict`, raises instead.
    """
    from pipeline.config import checked, load_or_last_good

    def load(version: KeptVersion | None) -> Config:
        return checked.load_checked(file, kept=version, secrets_needed=False)

    if strict:
        return load(None)
    return load_or_last_good(file, load, lambda line: click.echo(f"warning: {line}", err=True))


def watch_checked(file: Path) -> Watched:
    """Return the checked configuration, with its changes. A role started by `up` also gets the version that `up` keeps."""
    from pipeline.config import LAST_GOOD_VARIABLE, LastGood, Watched, checked

    folder = os.environ.get(LAST_GOOD_VARIABLE)
    if not folder:
        return Watched(file, checked.load_checked, checked.input_files)
    kept = LastGood.in_folder(Path(folder), file, lambda version: checked.load_checked(file, kept=version))
    return Watched(file, checked.load_checked, checked.input_files, kept, kept.fixed_sections)


def config_option(function: Any) -> Any:
    """Add the option `-c FILE`, passed to the command as `file: Path`."""
    return click.option(
        "-c",
        "--config",
        "file",
        type=click.Path(path_type=Path),
        default=Path("hitrouter.yaml"),
        show_default=True,
        help="The configuration file.",
    )(function)


def print_line(line: str, err: bool = False) -> None:
    """Print one line; control characters and line breaks are escaped as `\\x1b`, so that they cannot affect the terminal."""
    click.echo(escape_controls(line), err=err)


def print_text(text: str) -> None:
    """Print text from outside, such as a hit. Escapes control characters except for line breaks and tabs."""
    click.echo(escape_controls(text, "\n\t"))


def count_text(count: int, noun: str) -> str:
    """Return the count with its noun: `1 event`, `2 events`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def parse_time(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """Convert the value of a time option to milliseconds since 1970."""
    from pipeline.operations.moments import read_moment

    try:
        return None if value is None else read_moment(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def slot_option(function: Any) -> Any:
    """Add the option `--slot N`."""
    return click.option(
        "--slot",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Number of this worker. Each copy of a role needs its own, and keeps it across restarts.",
    )(function)


def main() -> None:
    """Run the command of `sys.argv`. Expected errors are printed without a traceback.

    Exit codes: 1 configuration or topics, 2 usage, 69 no Kafka, 70 others (docs/reference/processes.md). A role ends by SIGNALS.exit.
    """
    is_role = SIGNALS.is_installed
    try:
        _set_up_logging(os.environ.get("HITROUTER_LOG"), is_role, log_format_of(os.environ))
        if is_role:
            set_private_umask()
            _report_crashes()
    except ValueError as error:
        click.echo(f"hitrouter: {error}", err=True)
        sys.exit(2)
    code, reason = _run(is_role)
    if is_role:
        if code:
            report_exit_reason(reason)
        SIGNALS.exit(code)
    sys.exit(code)


def _run(is_role: bool) -> tuple[int, str]:
    """Run the command; return its exit code and the reason. Errors while a role is stopping are not failures."""
    try:
        cli()
    except SystemExit as ended:
        return (ended.code, "") if isinstance(ended.code, int) else (int(ended.code is not None), "")
    except Exception as error:
        if is_role and SIGNALS.is_stopping:
            logger.warning("error while stopping: error=%r", error)
            return 0, ""
        if isinstance(error, ConfigurationError):
            for problem in error.problems:
                _report(problem, problem, is_role)
            return 1, "; ".join(error.problems)
        if isinstance(error, HitrouterError):
            _report(f"hitrouter: {error}", str(error), is_role)
            return _exit_code(error), str(error)
        if not is_role:
            raise
        logger.critical("unexpected error, exiting: error=%r", error, exc_info=error)
        return 70, repr(error)
    return 0, ""


def _report(line: str, problem: str, is_role: bool) -> None:
    """Print `line`, or log `problem` if this is a role with JSON lines."""
    if is_role and log_format_of(os.environ) == JSON:
        logger.error("command failed: error=%s", problem)
    else:
        click.echo(line, err=True)


def _exit_code(error: HitrouterError) -> int:
    """Return the exit code for `error`. 70 requests a restart; mismatched topics get 1, as a restart cannot fix them."""
    if isinstance(error, BrokerUnavailable | IntakeUnavailable):
        return 69
    return 1 if isinstance(error, TopicMismatch) else 70


def _report_crashes() -> None:
    """Print the stacks of all threads on a crash in native code, and on SIGUSR1."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)


class LibrdkafkaFormatter(logging.Formatter):
    """Leaves out client, thread and state, for a terminal: `Kafka client: Connect to 127.0.0.1:9092 failed: Connection refused`."""

    def format(self, record: logging.LogRecord) -> str:
        """`record` as a line."""
        text = _LIBRDKAFKA_PREFIX.sub("", record.getMessage())
        return f"hitrouter: Kafka client: {_LIBRDKAFKA_STATE.sub('', text).replace('ipv4#', '').replace('ipv6#', '')}"


_LIBRDKAFKA_PREFIX = re.compile(r"\w+ \[rdkafka#[^]]*\] (\[thrd:.*?\]: )?(\S+/(bootstrap|-?\d+): )?")
_LIBRDKAFKA_STATE = re.compile(r" \(after \d+ms in state \w+(, \d+ identical error\(s\) suppressed)?\)")


def _set_up_logging(level: str | None, is_role: bool, log_format: str = TEXT) -> None:
    """Set up logging to stderr. Raises ValueError for an unknown level.

    Without a level, commands that are not roles show librdkafka's errors in plain words.
    """
    levels = logging.getLevelNamesMapping()
    named = "INFO" if level is None else level.upper()
    if named not in levels:
        raise ValueError(
            f"HITROUTER_LOG={level!r} is not a log level: set DEBUG, INFO, WARNING, ERROR or CRITICAL, or unset it"
        )
    logging.basicConfig(
        level=levels[named],
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    if log_format == JSON:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter(os.environ.get(PROCESS_VARIABLE, "")))
        logging.captureWarnings(True)
        threading.excepthook = _log_thread_failure
    for quiet in ("faust", "mode", "aiokafka", "httpx", "asyncio"):
        logging.getLogger(quiet).setLevel(logging.ERROR)
    if not is_role and level is None:
        librdkafka = logging.getLogger("pipeline.kafka.client.librdkafka")
        librdkafka.setLevel(logging.ERROR)
        if log_format == TEXT:
            plain = logging.StreamHandler()
            plain.setFormatter(LibrdkafkaFormatter())
            librdkafka.addHandler(plain)
            librdkafka.propagate = False


def _log_thread_failure(failure: threading.ExceptHookArgs) -> None:
    name = failure.thread.name if failure.thread is not None else "unknown"
    error = failure.exc_value or failure.exc_type()
    logger.error("unexpected error in a thread: thread=%s", name, exc_info=error)
