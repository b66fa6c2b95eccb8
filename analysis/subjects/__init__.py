"""What is known: a model, its data, what to forget and what to keep."""
