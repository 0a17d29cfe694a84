"""Helpers that all packages share: atomic writes, locks, logging, progress, command line."""
