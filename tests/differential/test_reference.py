"""The reference page has a row for every function of the extension, and each is compared here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from airflow_dblink.hooks.dblink import DblinkHook
from tests.databases import Database

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/hook.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(dblink(?:_\w+)?)\(.*?\)` \| `(\w+)\(", PAGE, re.MULTILINE)
COMPARED = "".join(
    path.read_text(encoding="utf-8")
    for path in [ROOT / "tests/oracle.py", *(ROOT / "tests/differential").glob("*.py")]
)
# Not on dblink's page: what is there for versions before 8.2, and what CREATE SERVER calls.
_UNDOCUMENTED = {"dblink_current_query", "dblink_fdw_validator"}


def test_the_page_has_all_functions_of_the_extension(source: Database) -> None:
    source.admin("CREATE EXTENSION dblink")
    found = source.admin(
        "SELECT DISTINCT p.proname FROM pg_proc AS p JOIN pg_depend AS d ON d.objid = p.oid"
        " JOIN pg_extension AS e ON e.oid = d.refobjid WHERE d.deptype = 'e' AND e.extname = 'dblink'"
    )
    assert {name for name, _ in ROWS} == {name for (name,) in found} - _UNDOCUMENTED
    assert len(ROWS) == 19


@pytest.mark.parametrize(("theirs", "ours"), ROWS)
def test_each_is_on_the_hook_and_compared(theirs: str, ours: str) -> None:
    assert callable(getattr(DblinkHook, ours))
    function = theirs.removeprefix("dblink")
    called = {f'call("{function}"', f'call(f"{re.sub("insert|update|delete", "{kind}", function)}"'}
    assert any(call in COMPARED for call in called), called
