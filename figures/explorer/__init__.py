"""The explorer: a run as a page that answers while one draws, asks and slides, on this machine alone."""

import os

# gradio reads this when it is first imported; it would otherwise report to its makers that it was started.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

# gradio asks its own page once whether it answers, which a proxy meant for other hosts would refuse.
_EXEMPT = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
if _EXEMPT != "*":
    os.environ["no_proxy"] = ",".join(filter(None, (_EXEMPT, "127.0.0.1")))
