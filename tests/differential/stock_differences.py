"""The calls that differ from PostgresHook's, each with its row in the how-to's table."""

_ARRAYS = "A list into a column that is an array"
_NAMES = "SQL in the place of a table's or column's name in `insert_rows`"
_STYLES = "Dates and intervals in other styles"

DIFFERENCES: dict[str, str] = {
    "GenericTransfer of arrays": _ARRAYS,
    "GenericTransfer of jsonb arrays": _ARRAYS,
    "GenericTransfer of scalars in jsonb": "A number or boolean into `json` or `jsonb`",
    "a connection without password": "The worker's own credentials",
    "extra unknown key": "An unknown key in Extra",
    "get records under datestyle=German": _STYLES,
    "get records under intervalstyle=iso_8601": _STYLES,
    "get uri with extra": "Extra in `get_uri` and `sqlalchemy_url`",
    "hook takes unknown arguments": "An unknown argument of the hook",
    "hook test connection": "`test_connection`",
    "insert a list into int array": _ARRAYS,
    "insert a list into numeric array": _ARRAYS,
    "insert a list into text array": _ARRAYS,
    "insert a list of dicts into jsonb array": _ARRAYS,
    "insert a list of lists into an array": _ARRAYS,
    "insert an empty list into an array": _ARRAYS,
    "insert rows into a table with an alias": _NAMES,
    "insert rows with commit every 0": "`insert_rows(commit_every=0)`",
    "url with a wrong sqlalchemy query": "`sqlalchemy_query` in Extra that is no object",
}
