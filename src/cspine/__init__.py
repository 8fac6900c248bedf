"""cspine: find cervical spine fractures on CT, per vertebra, with the evidence and the limits shown."""

__version__ = "0.1.0"
