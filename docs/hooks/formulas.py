"""Formulas become MathML while the site is built, which browsers draw by themselves: no script, no fonts to load."""

import html
import re

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def drawn(page: str) -> str:
    r"""Replace the formulas that pymdownx.arithmatex marked.

    Args:
        page: HTML with formulas as `\(...\)` and `\[...\]`.

    Returns:
        HTML with MathML in their place.
    """

    def one(match: re.Match[str]) -> str:
        display = "block" if match["open"] == "[" else "inline"
        return convert(html.unescape(match["tex"]), display=display)

    return FORMULA.sub(one, page)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw a page's formulas.

    Args:
        content: HTML of the page.
        page: Which.
        config: Of the site.
        files: All of the site.

    Returns:
        HTML with MathML.
    """
    return drawn(content)
