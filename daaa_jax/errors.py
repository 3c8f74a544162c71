"""The exceptions that mean: the user can mend this, and one line says how."""


class UserError(Exception):
    """A mistake in settings, files or data.

    Its message is a single line: what is wrong, where, and what to do. `main` prints it and exits
    with code 1, without a traceback.
    """


class Diverged(UserError):
    """Training became infinite or NaN, and with these settings does so each time.

    Attributes:
      stage: that did, where it is known.
    """

    stage = ""
