"""The explorer: a run as a page that answers while one draws, asks and slides, on this machine alone."""

import os

# gradio reads this when it is first imported; it would otherwise report to its makers that it was started.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
