"""The two ways a run can end early that are not bugs in this program."""


class UserError(Exception):
    """Something that the person at the keyboard can mend: one line that says what is wrong and what to do.

    Commands print it without a traceback and exit with code 2.
    """


class Diverged(Exception):
    """A loss or a weight is no longer finite. Commands print it in one line and exit with code 1."""
