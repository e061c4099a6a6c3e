"""Runs Dramatiq with our logs: `python -m chatapi.consume chatapi.worker --queues replies titles`.

Dramatiq's own command sets up logging in its master and its workers before it loads anything of ours, and takes what
is there already. What it is told is as of its own command; the master loads the settings, and no more.
"""

from __future__ import annotations

import sys
from typing import Any

import structlog
from dramatiq import cli

from chatapi.logs import configure_from
from config import ConfigError, load_settings

log = structlog.get_logger(__name__)


def main() -> int:
    """Run until Dramatiq ends; return its exit status."""
    words = sys.argv[1:]
    arguments = cli.make_argument_parser().parse_args(words)
    try:
        configure_from(load_settings())
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    # On SIGHUP Dramatiq starts itself again by these words.
    sys.argv = [sys.executable, "-m", "chatapi.consume", *words]
    _log_failed_starts()
    return int(cli.main(arguments))


def _log_failed_starts() -> None:
    """Log why a worker cannot begin: multiprocessing would print it, in many lines and with what exceptions say."""
    inner = cli.worker_process

    def worker_process(*arguments: Any) -> None:
        try:
            inner(*arguments)
        except Exception:
            log.critical("worker_failed", exc_info=True)
            raise SystemExit(1) from None

    cli.worker_process = worker_process


if __name__ == "__main__":
    sys.exit(main())
