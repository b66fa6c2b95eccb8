"""The explorer's shell: what both families' pages share, and the server, which listens on this machine alone.

Built with gradio: of gradio, streamlit, marimo and panel it alone has sliders that answer while they move, parts of the
page that take clicks and strokes, and its own script and fonts in the package, so that nothing is fetched or compiled.
"""

import contextlib
import threading
import webbrowser
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from analysis.errors import UserError
from figures.artefacts import Run, existing
from unlearn.documents import read_run

try:
    import gradio as gr
except ModuleNotFoundError as error:
    if error.name != "gradio":
        raise
    raise UserError("The explorer needs gradio, which is not installed; add it with: pip install 'gradio>=6'") from None
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

HOST = "127.0.0.1"
SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
SYSTEM_MONO = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
STYLES = Path(__file__).parent
GUARD = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
"""A page from elsewhere can give its own name to this machine's address, and would then be let in as one of ours."""


def newest_run(folder: Path) -> Path:
    """Find the run that was finished last.

    Args:
        folder: Where runs are kept, e.g. runs.

    Returns:
        The run's folder.

    Raises:
        UserError: There is none.
    """
    found = sorted(folder.glob("*/run.json"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise UserError(f"There are no runs in {folder} to explore; make one with: yesterday run digit-6")
    return found[-1].parent


def build(run_folder: Path) -> gr.Blocks:
    """Build the page of one run.

    Args:
        run_folder: Of a run of either family, edited at least.

    Returns:
        The page; `serve` shows it with its theme and style.
    """
    done = read_run(existing(run_folder))
    family = Run(run_folder).family
    with gr.Blocks(title=f"Yesterday: {done.name}", analytics_enabled=False) as page:
        gr.HTML(f"<h1>{escape(done.name)}</h1><p>{escape(done.sentence)}</p>", elem_classes="verdict")
        # Either family's libraries take seconds to load, so only its own are.
        if family == "facts":
            from figures.explorer.facts_page import facts_page

            facts_page(run_folder)
        else:
            from figures.explorer.class_page import class_page

            class_page(run_folder, page)
    return page


def theme() -> gr.themes.Base:
    """Choose the page's colours and fonts.

    Returns:
        gradio's plain theme with fonts that every machine has, so that none is fetched.
    """
    return gr.themes.Base(primary_hue="blue", neutral_hue="gray", font=SYSTEM_FONTS, font_mono=SYSTEM_MONO)


@contextlib.contextmanager
def serving(run_folder: Path, port: int | None = None) -> Iterator[str]:
    """Serve a run's page on this machine while the context lasts.

    Args:
        run_folder: The run.
        port: Where to listen; None or 0 takes a free one.

    Yields:
        The page's address.

    Raises:
        UserError: The port is taken.
    """
    page = build(run_folder)
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port or None,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            max_file_size=1,  # nothing here takes files, and gradio would keep whatever it is sent
            app_kwargs={"middleware": [GUARD]},
            theme=theme(),
            css_paths=sorted(STYLES.glob("*.css")),
        )
    except OSError as error:
        where = f"Port {port} is in use" if port else "No port is free"
        raise UserError(f"{where} on this machine; give another with --port.") from error
    try:
        yield address
    finally:
        page.close(verbose=False)


def serve(run_folder: Path, port: int | None, open_browser: bool, say: Callable[[str], None] = print) -> None:
    """Serve a run's page until the user interrupts.

    Args:
        run_folder: The run.
        port: Where to listen; None or 0 takes a free one.
        open_browser: Whether to show the page in the user's browser.
        say: Told where the page is.
    """
    with contextlib.suppress(KeyboardInterrupt), serving(run_folder, port) as address:
        say(f"{run_folder} is open at {address} (Ctrl-C ends it)")
        if open_browser:
            webbrowser.open(address)
        threading.Event().wait()
