"""Errors that are the user's to solve. Imports nothing."""


class UserError(Exception):
    """Something cannot be done as asked; the message says what and why, in one line."""

    exit_code = 2


class DataError(UserError, ValueError):
    """A file is missing, truncated or corrupt; the message names it and says what to do."""


class RunError(UserError):
    """A run cannot be started or resumed as asked."""


class InUse(RunError):
    """Another process is at a run."""


class RunFailed(UserError):
    """Something was begun as asked and failed on the way."""

    exit_code = 1
