"""References are kept until anything that decides them changes, the code included."""

from pathlib import Path

from unlearn.language.references import WRITTEN_BY, written_by


def test_every_change_of_the_code_that_makes_references_is_noticed(tmp_path: Path) -> None:
    files = [tmp_path / pattern.replace("*", "some") for pattern in WRITTEN_BY]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one = 1\n")
    seen = {written_by.__wrapped__(tmp_path)}
    for number, path in enumerate(files):
        path.write_text(f"one = {number + 2}\n")
        seen.add(written_by.__wrapped__(tmp_path))
    files[0].rename(files[0].with_name("other.py"))
    seen.add(written_by.__wrapped__(tmp_path))
    assert len(seen) == len(files) + 2
    (tmp_path / "analysis" / "unrelated.py").write_text("two = 2\n")
    assert written_by.__wrapped__(tmp_path) in seen


def test_the_code_is_found_where_it_is_installed() -> None:
    root = Path(written_by.__wrapped__.__defaults__[0])
    assert all(list(root.glob(pattern)) for pattern in WRITTEN_BY)
