"""Runs on facts in language models: the counterpart of `unlearn.run` and `unlearn.judging` for classes."""
