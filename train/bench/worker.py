"""A side in a process of its own: another version of a package, or a crash, stays there."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from pipeline.base.console import Failed


class Worker:
    """`make(*arguments)` in a new process; calling the worker calls the methods of what it made.

    Close it, or use it as a context.  environment: set in the process before `make` runs.  Errors of either
    are Failed here, in one line; their traceback is on stderr.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        serve = (theirs, make, arguments, dict(environment or {}))
        self._process = context.Process(target=_serve, args=serve)
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def __call__(self, method: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((method, arguments))
        except ConnectionError:
            self._ended()
        return self._answer()

    def _answer(self) -> Any:
        try:
            done, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._ended()
        if not done:
            raise Failed(value)
        return value

    def _ended(self) -> None:
        self._process.join()
        raise Failed(f"its process ended with {self._process.exitcode}") from None

    def close(self) -> None:
        """End the process, once it has done what it was asked."""
        self._pipe.close()
        self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Connection, make: Callable[..., Any], arguments: Any, environment: dict[str, str]) -> None:
    os.dup2(2, 1)  # stdout is the command's
    os.environ.update(environment)
    try:
        made = make(*arguments)
        pipe.send((True, None))
        while True:
            method, given = pipe.recv()
            pipe.send((True, getattr(made, method)(*given)))
    except (EOFError, KeyboardInterrupt):  # closed; Ctrl-C reaches all processes of a terminal
        pass
    except Exception as error:
        traceback.print_exc()
        pipe.send((False, f"{type(error).__name__}: {error}".splitlines()[0]))
