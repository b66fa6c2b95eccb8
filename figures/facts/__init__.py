"""Figures of a run on facts: one module each, which is also a command: `python -m figures.facts.overview RUN`."""
