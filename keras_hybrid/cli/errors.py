"""What the commands raise."""


class UsageError(ValueError):
    """Arguments that make no sense together."""
