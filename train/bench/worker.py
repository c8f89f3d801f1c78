"""A side in a process of its own: another version of a package, or a crash, stays there."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from pipeline.base.console import USER_ERRORS, Failed


class Worker:
    """`make(*arguments)` in a new process; calling the worker calls a method of what it made.

    Close it, or use it as a context.  environment: set in the process before `make` runs.  A ValueError or
    OSError there is a ValueError here; any other error, or the process's end, is Failed.
    """

    def __init__(
        self, make: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None
    ):
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
            return self._answer()
        except ConnectionError:
            raise self._ended() from None

    def _answer(self) -> Any:
        try:
            error, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise self._ended() from None
        if error is not None:
            raise error(value)
        return value

    def _ended(self) -> Failed:
        self._process.join()
        return Failed(f"its process ended with {self._process.exitcode}")

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
        made = _send(pipe, lambda: make(*arguments), told=False)
        while made is not None:
            method, given = pipe.recv()
            _send(pipe, lambda: getattr(made, method)(*given))  # noqa: B023 (called at once)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # closed; Ctrl-C reaches all of a terminal's
        pass


def _send(pipe: Connection, work: Callable[[], Any], told: bool = True) -> Any:
    """Send (None, what `work` returns, if `told`), or (kind of error, its first line); returns the result."""
    try:
        value = work()
    except Exception as error:
        kind = ValueError if isinstance(error, USER_ERRORS) else Failed
        if kind is Failed:
            traceback.print_exc()
        text = str(error).strip() or type(error).__name__
        pipe.send((kind, text.splitlines()[0]))
        return None
    pipe.send((None, value if told else None))
    return value
