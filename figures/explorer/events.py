"""How the pages of both families answer their visitor."""

from typing import Any

ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1, "api_visibility": "private"}
"""Of an event that asks models, whichever panel it comes from: what reads activations hangs on the models themselves,
and the strength of an edit is set in one."""
