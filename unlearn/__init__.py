"""Changes models: methods, masked optimisation, edits, and the stages of a run."""
