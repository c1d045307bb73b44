"""Colab's secrets: this user has none."""


class SecretNotFoundError(Exception):
    """What Colab raises for an unknown name."""


class NotebookAccessError(Exception):
    """What Colab raises where the user has not given leave."""


def get(name):
    """Raise, because there is no such secret."""
    raise SecretNotFoundError(name)
