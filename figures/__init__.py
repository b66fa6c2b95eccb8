"""Draws run artefacts: one file per figure."""
