"""What a person is told when their request cannot be met."""

__all__ = ["Refusal"]


class Refusal(ValueError):
    """A request that is refused, in a sentence for the person who made it.

    Attributes:
        status: The HTTP status that goes with it.
        code: A word for programs, such as ``"no_face"``.
    """

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status = status
        self.code = code
