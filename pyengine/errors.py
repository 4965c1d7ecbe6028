"""The one error a person's mistake raises: a sentence that says what is wrong and how to mend it."""


class UserError(Exception):
    """A mistake in what was given (a file, a flag, a row), told in one sentence.

    The message names file and line where there is one, what was expected, and how to mend it. Command
    lines print it alone; a traceback appears only with `--debug`.
    """
