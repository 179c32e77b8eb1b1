"""Exit status of commands: what a user can mend is one line, and so is Ctrl-C."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from dsmoe_jax import terminal

_INTERRUPTED = "interrupted; what was saved before stays"
# Whether the line above was printed.
_told: list[bool] = []


def end_at_signals() -> None:
    """Lets Ctrl-C and SIGTERM end the process at once, in one line and with status 130.

    For the time of imports, which swallow a KeyboardInterrupt or show where it came from: nothing
    is written yet. `interrupt_at_signals` ends that time.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # Who ignores Ctrl-C, as a shell's background does, goes on ignoring it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def interrupt_at_signals(*, sigterm: bool | None) -> None:
    """Lets Ctrl-C raise KeyboardInterrupt again, and a second one end the process at once.

    Handlers that are not those of `end_at_signals` stay, but for SIGTERM's if it is asked for.

    Args:
      sigterm: Whether SIGTERM does as Ctrl-C; False gives it its usual effect again, None leaves it
        to a library that listens to it without Python's knowledge, as JAX's preemption service.
    """
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, _interrupt)
    if sigterm:
        signal.signal(signal.SIGTERM, _interrupt)
    elif sigterm is False and signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def exit_status(work: Callable[[], int | None], *, show_traceback: bool = False) -> int:
    """Does the work of a command.

    Args:
      work: Raises what a user can mend as ValueError or OSError.
      show_traceback: Whether such an error is raised on, for whoever wants to see its origin.

    Returns:
      What the work returned, 0 if nothing; 2 on bad input, 130 when interrupted.
    """
    try:
        return work() or 0
    except KeyboardInterrupt:
        _tell()
        return 130
    except (ValueError, OSError) as error:
        # A message for the user is one line, but for what a name in it holds; more lines come from
        # a library and need their trace.
        if show_traceback or ("\n" in str(error) and not _is_own(error)):
            raise
        print(f"error: {terminal.one_line(str(error))}", file=sys.stderr)
        return 2


def _is_own(error: BaseException) -> bool:
    """Whether a module of the package raised an error."""
    trace, name = error.__traceback__, ""
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__"))
        trace = trace.tb_next
    # JAX leaves out its own frames and says so in a note.
    return name.startswith(f"{__package__}.") and not getattr(error, "__notes__", ())


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(each) is _interrupt:
            signal.signal(each, _end)
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    if not _told:
        # Not through a buffer, whose lock the interrupted code may hold.
        os.write(2, f"{_INTERRUPTED}\n".encode())
    os._exit(130)


def _tell() -> None:
    print(_INTERRUPTED, file=sys.stderr)
    if signal.getsignal(signal.SIGINT) is _end:
        # What follows in this process ends without a second line.
        _told.append(True)
