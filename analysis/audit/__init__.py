"""Was the knowledge erased, or only hidden? One file per auditor, and the verdict."""
