"""The one exception that is meant to be read by the person at the keyboard."""


class EmoError(ValueError):
    """Say what was got, what was expected and what to do next, in one sentence.

    The command line prints it without a traceback and exits with code 2.
    """
