"""How every command line ends: with its work done, with one sentence about a mistake, or interrupted."""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable

from .errors import UserError

MEND = {
    errno.ENOSPC: "free some space and give the command again",
    errno.EEXIST: "a folder is needed there, choose another name",
    errno.ENOTDIR: "a folder is needed there, choose another name",
    errno.EDQUOT: "free some space and give the command again",
}

MISTAKES = (UserError, OSError, ImportError, NotImplementedError)


def run(work: Callable[[], int | None], debug: bool = False, stopped: str = "stopped") -> int:
    """Do the work of a command; returns the exit status: the work's own (None is 0), 1 after a mistake, 130 after
    Ctrl-C, 141 where the reader of the output went away.

    A mistake is a UserError, an OSError (a file that cannot be read or written), an ImportError (what is not built or
    installed, or no such name in PYENGINE_ISA or PYENGINE_BACKEND) or a NotImplementedError (a backend asked for that
    does not do this). It is told in one sentence on standard error, as is a warning. debug: show its traceback before
    it. stopped: what is said after Ctrl-C.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        return work() or 0
    except BrokenPipeError:
        # As `| head` does. Python flushes once more at its end, which must have somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MISTAKES as error:
        if debug:
            traceback.print_exc()
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130


def sentence(error: Exception) -> str:
    """What went wrong, where, and how to mend it if that is known."""
    if isinstance(error, ImportError | NotImplementedError):
        # torch's go on for many lines, and some are empty
        return str(error).strip().partition("\n")[0] or type(error).__name__
    if not isinstance(error, OSError):
        return str(error)
    named = (
        error.filename if error.filename2 is None else error.filename2
    )  # a rename's target is what was asked for
    where = [] if named is None else [os.fsdecode(named)]
    told = ": ".join([*where, (error.strerror or str(error) or type(error).__name__).lower()])
    mend = MEND.get(error.errno or 0)
    return f"{told}; {mend}" if mend else told
