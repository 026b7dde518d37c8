"""patchform: vision transformers, any backbone under any head."""

__version__ = "0.1.0"
