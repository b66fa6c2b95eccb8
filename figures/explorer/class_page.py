"""The page of a classifier's run: draw and ask, slide the edit's strength, look at neurons."""

from pathlib import Path

import gradio as gr


def class_page(folder: Path) -> None:
    """Put a run's panels on the page that is being built.

    Args:
        folder: The run.
    """
    gr.HTML(f"<p>{folder.name}</p>")
