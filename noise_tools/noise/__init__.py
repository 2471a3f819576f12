"""Noise types, one per file."""
