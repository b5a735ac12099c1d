"""What the kit refuses, and why."""


class Refused(Exception):
    """The input would give a model or a figure that is wrong. The text names the object, the reason and what to do."""
