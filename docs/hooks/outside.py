"""Pages and pictures that lie outside docs/, and links to them.

The pages are written for whoever reads the repository: their links are paths between its files. So that the site has
the same links, a few files from outside are taken into it, and what a page says of a path is said of its place there.
A link to a Python file of ours becomes one to its entry in the reference; other files that the site doesn't have leave
the words without the link.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
FOLDERS = {"figures/gallery": ("gallery", "**/*"), "notebooks": ("notebooks", "*")}
KINDS = {".md", ".png", ".svg", ".ipynb"}
CODE = re.compile(r"(?:(?:analysis|unlearn|figures)/[\w/]+|yesterday|yesterday_options)\.py")
LINK = re.compile(r"(?P<picture>!?)\[(?P<words>[^\]]*)\]\((?P<target>[^)\s]+)\)")
ATTRIBUTE = re.compile(r"(?P<name>\b(?:src|href|srcset)=\")(?P<target>[^\"\s]+)(?=\")")


def places(root: Path) -> dict[str, str]:
    """Say which files from outside docs/ the site has, and where.

    Args:
        root: Folder of the repository.

    Returns:
        Places in the site by paths in the repository, both with forward slashes.
    """
    found = {path: place for path, place in PAGES.items() if (root / path).is_file()}
    for folder, (place, pattern) in FOLDERS.items():
        for file in sorted((root / folder).glob(pattern)):
            if file.suffix in KINDS:
                found[file.relative_to(root).as_posix()] = f"{place}/{file.relative_to(root / folder).as_posix()}"
    return found


def relinked(markdown: str, origin: str, root: Path) -> str:
    """Turn links between files of the repository into links between pages of the site.

    Args:
        markdown: Of a page.
        origin: The page's path in the repository.
        root: Folder of the repository.

    Returns:
        The same page; links to what isn't there, to other hosts and inside the page are as they were.
    """
    known = places(root)
    here = posixpath.dirname(known.get(origin, origin.removeprefix("docs/")))

    def resolve(target: str) -> tuple[str, str] | None:
        # What a target means: its path in the repository and its anchor; None for all that is no file of ours.
        path, hash_, anchor = target.partition("#")
        if not path or "://" in path or path.startswith(("/", "mailto:")):
            return None
        full = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        return (full, hash_ + anchor) if not full.startswith("..") and (root / full).exists() else None

    def inside(full: str) -> str | None:
        return known.get(full) or (full.removeprefix("docs/") if full.startswith("docs/") else None)

    def link(match: re.Match[str]) -> str:
        meant = resolve(match["target"])
        if meant is None:
            return match[0]
        full, anchor = meant
        if place := inside(full):
            return f"{match['picture']}[{match['words']}]({posixpath.relpath(place, here or '.')}{anchor})"
        if CODE.fullmatch(full):
            return f"[{match['words']}][{full.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}]"
        return match["words"]

    def attribute(match: re.Match[str]) -> str:
        meant = resolve(match["target"])
        place = meant and inside(meant[0])
        return f"{match['name']}{posixpath.relpath(place, here or '.')}{meant[1]}" if meant and place else match[0]

    return ATTRIBUTE.sub(attribute, LINK.sub(link, markdown))


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the files from outside into the site.

    Args:
        files: Of docs/.
        config: Of the site.

    Returns:
        The same, with more in them.
    """
    root = _root(config)
    for path, place in places(root).items():
        files.append(File.generated(config, place, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mend a page's links.

    Args:
        markdown: The page.
        page: Where it stands.
        config: Of the site.
        files: All of the site.

    Returns:
        The page with links between pages of the site.
    """
    root = _root(config)
    origins = {place: path for path, place in places(root).items()}
    return relinked(markdown, origins.get(page.file.src_uri, f"docs/{page.file.src_uri}"), root)
