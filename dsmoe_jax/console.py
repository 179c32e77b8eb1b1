"""Exit status of commands: what a user can mend is one line, and so is Ctrl-C."""

import sys
from collections.abc import Callable


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
        print("interrupted; what was saved before stays", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        # One line is a message for the user; more lines come from a library and need their trace.
        if show_traceback or "\n" in str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
