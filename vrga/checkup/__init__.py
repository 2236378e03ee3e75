"""`vrga doctor`: whether vrga does on this installation what it says."""

from vrga.checkup.result import Check, Checkup

__all__ = ["Check", "Checkup"]
