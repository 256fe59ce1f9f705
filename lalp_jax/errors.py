"""The errors that a user can mend. Everything else is a bug and keeps its traceback."""


class LalpError(Exception):
    """Base of all errors whose message is meant for the user: commands print it alone and exit with 2."""


class InputError(LalpError):
    """Something handed to the program is wrong: says what, where, and how to mend it."""

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None):
        """Args: what is wrong; where (``file:line``, a tensor's name, a flag); how to mend it."""
        self.what, self.where, self.remedy = what, where, remedy
        message = f"{where}: {what}" if where else what
        super().__init__(f"{message}\n  remedy: {remedy}" if remedy else message)
