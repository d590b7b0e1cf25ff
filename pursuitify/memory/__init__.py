"""What is kept for the derivatives of the sweeps: less than plain unrolling keeps."""

from pursuitify.memory.modes import solve

__all__ = ["solve"]
