"""Exported files: what they say of themselves, and how they are opened and run."""
