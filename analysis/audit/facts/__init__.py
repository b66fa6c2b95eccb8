"""Auditors for language models: was a fact erased, or only hidden? One file per kind of auditor."""
