"""Reads models and never changes them: subjects, attribution, localisation, representations and the audit."""
