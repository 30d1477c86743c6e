"""The list of attacks names each file of them, and no other."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "security"


def test_the_list_of_attacks_is_complete() -> None:
    listed = re.findall(r"^\| `(.+?)` \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    there = [path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("test_*.py")]
    assert sorted(listed) == sorted(there)
