"""A school's own offline teaching assistant: answers from the school's documents, tuned on the school's machine."""

__version__ = "0.1.0"
