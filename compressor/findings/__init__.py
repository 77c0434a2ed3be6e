"""Findings: silent, removable, repeated, dependent, needed; one question per file."""
