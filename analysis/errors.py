"""The one exception a user is meant to see."""


class UserError(Exception):
    """Something the user can mend; its message is one sentence that says what is wrong and what to do.

    The command line prints the message alone, without a traceback, and ends with exit code 2.
    """
