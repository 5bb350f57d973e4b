"""What every error that is the user's to solve has in common. Imports nothing."""


class UserError(Exception):
    """Something cannot be done as asked; the message says what and why, in one line."""
