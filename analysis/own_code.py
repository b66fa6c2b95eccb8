"""Code of a user's own, found by what was typed: "package.module:name" or "path/to/file.py:name"."""

import difflib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from analysis.errors import UserError


def reason(error: BaseException) -> str:
    """Say in one line what went wrong in a user's code.

    Args:
        error: What it raised.

    Returns:
        Its type and the first line of its message.
    """
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def import_code(where: str) -> ModuleType:
    """Import a module or a file; this runs the user's code.

    The working directory (or the file's own folder) is put on the import path.

    Args:
        where: "package.module" or "path/to/file.py".

    Returns:
        The module.

    Raises:
        UserError: There is none, or importing it failed.
    """
    path = Path(where).expanduser()
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise UserError(f"There is no file {path}; check the path before the colon.")
    folder = str((path.parent if is_file else Path()).resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        if not is_file:
            return importlib.import_module(where)
        name = "user_code_" + re.sub(r"\W", "_", str(path.resolve()))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None  # every file ending in .py has a loader
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and the like look their module up
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        if not is_file and error.name and (where == error.name or where.startswith(f"{error.name}.")):
            raise UserError(
                f"There is no Python module {where!r}; run from the folder that holds it, or give path/to/file.py:name."
            ) from error
        raise UserError(
            f"Importing {where} failed because there is no module {error.name!r}; install it or mend the import."
        ) from error
    except (Exception, SystemExit) as error:
        raise UserError(
            f"Importing {where} failed ({reason(error)}); mend the file so that it can be imported."
        ) from error
    else:
        return module


def find(where: str, name: str, wanted: str) -> Any:
    """Find something by name in a user's code.

    Args:
        where: See `import_code`.
        name: Of what is looked for.
        wanted: What to define where it is missing, e.g. "a function that returns the model".

    Returns:
        What the name stands for.

    Raises:
        UserError: The code can't be imported, or has nothing of that name.
    """
    module = import_code(where)
    found = getattr(module, name, None)
    if found is None:
        near = difflib.get_close_matches(name, [one for one in vars(module) if callable(getattr(module, one))], n=1)
        hint = f"did you mean {near[0]}?" if near else f"define {wanted}."
        raise UserError(f"{where} has no {name!r}; {hint}")
    return found
