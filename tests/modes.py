"""Permissions of what is written."""

from pathlib import Path


def unusual_modes(folder: Path) -> dict[str, str]:
    """The files below a folder whose permissions are not those of a new file there, with them."""
    fresh = folder / "fresh"
    fresh.touch()
    usual = fresh.stat().st_mode
    fresh.unlink()
    found = {p.relative_to(folder): p.stat().st_mode for p in folder.rglob("*") if p.is_file()}
    assert found
    return {str(path): oct(mode) for path, mode in found.items() if mode != usual}
