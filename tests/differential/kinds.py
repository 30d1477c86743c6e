"""The types that columns get, with values of each as PostgreSQL reads them under its default settings."""

from __future__ import annotations

import string
from dataclasses import dataclass, field

from hypothesis import strategies as st

Value = str | None

# Characters that often break quoting, counting of bytes and patterns.
_AWKWARD = "'\"\\ \n\t%$,.;(){}é☃𝄞\u00a0\x01" + string.ascii_letters + string.digits
_CHARACTERS = st.sampled_from(_AWKWARD) | st.characters(exclude_categories=["Cs"], exclude_characters="\0")
awkward_texts = st.text(_CHARACTERS, max_size=12)


@dataclass(frozen=True)
class Kind:
    """A column's type.

    :ivar type: its name in DDL.
    :ivar values: some values.
    :ivar btree: whether a primary key can have it.
    :ivar constant: whether a generated column can have it, with the first value.
    :ivar free: whether any text is a value.
    """

    type: str
    values: tuple[str, ...] = field(repr=False)
    btree: bool = field(default=True, repr=False)
    constant: bool = field(default=False, repr=False)
    free: bool = field(default=False, repr=False)

    @property
    def strategy(self) -> st.SearchStrategy[str]:
        """The strategy for its values."""
        known = st.sampled_from(self.values)
        return known | awkward_texts if self.free else known


_UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
INTEGERS: tuple[Kind, ...] = (
    Kind("smallint", ("0", "7", "-32768", "32767")),
    Kind("int", ("1", "2", "-5", "2147483647"), constant=True),
    Kind("bigint", ("1", "3", "-9223372036854775808", "9007199254740993")),
)
_NUMBERS = (
    Kind(
        "numeric",
        ("1.50", "0", "NaN", "Infinity", "-Infinity", "123456789012345678901234567890.0123456789"),
        constant=True,
    ),
    Kind("numeric(6,2)", ("1.5", "-0.01", "9999.99", "NaN")),
    Kind("real", ("1.5", "0.1", "NaN", "Infinity", "-Infinity", "1e-30", "-0")),
    Kind(
        "double precision",
        ("1.5", "0.1", "NaN", "Infinity", "-Infinity", "1e300", "-0", "0.30000000000000004"),
    ),
    Kind("money", ("12.34", "-0.5")),
    Kind("oid", ("0", "4294967295", "1259")),
)
_TEXTS = (
    Kind("text", ("", "a", "it's", "back\\slash", "NULL", "two\nlines"), constant=True, free=True),
    Kind("varchar(5)", ("", "abc", "a'\\b")),
    Kind("varchar", ("", "a", "ünï"), free=True),
    Kind("char(6)", ("ab", "", "a'b", "ab\\")),
    Kind("char", ("x", "'", "\\")),
    Kind('"char"', ("x", "", "'", "\\")),
    Kind("name", ("a", "", "x" * 63), free=True),
    Kind('text COLLATE "C"', ("a", "B"), free=True),
    Kind("kit.citext", ("abc", "ABC", "it's")),
    Kind("bytea", ("\\x", "\\x00ff27", "abc", "\\x5c")),
)
_TIMES = (
    Kind("date", ("2024-02-29", "infinity", "-infinity", "0044-03-15 BC")),
    Kind("time", ("23:59:59.999999", "24:00", "01:02")),
    Kind("time(0)", ("23:59:59", "01:02")),
    Kind("timetz", ("12:00+05:30", "00:00-12")),
    Kind("timestamp", ("2024-01-02 03:04:05.6", "infinity", "0001-01-01 00:00 BC")),
    Kind(
        "timestamptz",
        ("2024-07-02 03:04:05.6+02", "-infinity", "0001-01-01 00:00+00 BC", "1900-01-01 00:00Z"),
    ),
    Kind("interval", ("1 year 2 mons -3 days 04:05:06.7", "-1 day", "0", "infinity", "-00:00:01")),
)
_NETWORK = (
    Kind("inet", ("192.168.1.5", "::1/64", "10.0.0.0/8")),
    Kind("cidr", ("192.168.1.0/24", "10.0.0.1")),
    Kind("macaddr", ("08:00:2b:01:02:03",)),
    Kind("macaddr8", ("08:00:2b:01:02:03:04:05",)),
    Kind("uuid", (_UUID, "{" + _UUID.upper() + "}")),
    Kind("pg_lsn", ("16/B374D848", "0/0")),
    Kind("xid", ("5",), btree=False),
    Kind("xid8", ("5", "4294967299")),
    Kind("cid", ("1",), btree=False),
    Kind("tid", ("(0,1)",)),
    Kind("pg_snapshot", ("10:20:10,14",), btree=False),
    Kind("aclitem", ("postgres=r/postgres",), btree=False),
)
_DOCUMENTS = (
    Kind("json", ('{"a": [1, null, "it\'s"]}', "null", '"\\\\"'), btree=False),
    Kind("jsonb", ('{"b": 1, "a": 1.50}', "null", '"it\'s \\\\ \\n"', "[]"), constant=True),
    Kind("jsonpath", ("$.a[*]", '$."it\'s"'), btree=False),
    Kind("xml", ("<a b='1'>&lt;</a>",), btree=False),  # the embedded server can't read values of it
    Kind("tsvector", ("'it''s':1A the:2", "")),
    Kind("tsquery", ("'a' & !'b\\\\'",)),
    Kind("kit.hstore", ("a=>1, b=>NULL", "")),
    Kind("refcursor", ("a",), btree=False),
)
_SHAPES = (
    Kind("point", ("(1.5,-0)", "(NaN,Infinity)"), btree=False),
    Kind("line", ("{1,2,3}",), btree=False),
    Kind("lseg", ("[(0,0),(1,1)]",), btree=False),
    Kind("box", ("(2,2),(0,0.1)",), btree=False),
    Kind("path", ("((0,0),(1,1))", "[(0,0),(1,1)]"), btree=False),
    Kind("polygon", ("((0,0),(1,1),(2,0))",), btree=False),
    Kind("circle", ("<(1,1),0.1>",), btree=False),
    Kind("bit(3)", ("101", "000")),
    Kind("bit varying", ("", "10101")),
)
_NAMES_OF_OBJECTS = (
    Kind("regclass", ("pg_class", "kit.pair", 'kit."odd \'name"')),
    Kind("regtype", ("int4[]", "kit.mood", "timestamptz")),
    Kind("regproc", ("now", "0")),
    Kind("regprocedure", ("sum(int4)",)),
    Kind("regoperator", ("+(int4,int4)",)),
    Kind("regnamespace", ("pg_catalog", "kit")),
    Kind("regrole", ("pg_monitor",)),
    Kind("regconfig", ("english",)),
)
_COLLECTIONS = (
    Kind("int[]", ("{}", "{1,2}", "{{1,NULL},{3,4}}", "[0:1]={5,6}", "{NULL}"), constant=True),
    Kind("text[]", ("{}", '{"",NULL,"NULL"}', '{{"it\'s"},{"\\\\ \\" ,"}}', "{a,b}")),
    Kind("numeric(4,1)[]", ("{1.5,NaN}",)),
    Kind("real[]", ("{0.1,-0,NaN}",)),
    Kind("bool[]", ("{t,f,NULL}",)),
    Kind("bytea[]", ('{"\\\\x00ff"}',)),
    Kind("timestamptz[]", ('{"2024-07-02 03:04:05+02",infinity}',)),
    Kind("interval[]", ('{"1 day"}',)),
    Kind("box[]", ("{(1,1),(0,0);(2,2),(1,1)}",), btree=False),
    Kind("jsonb[]", ('{"{\\"a\\": 1}"}',)),
    Kind("int2vector", ("1 2", ""), btree=False),
    Kind("oidvector", ("1 2", "")),
    Kind("int4range", ("[1,5]", "empty", "(,)", "[3,)")),
    Kind("numrange", ("(1.5,2.50]",)),
    Kind("daterange", ("[2024-01-01,infinity]", "[2024-01-01,2024-02-01]")),
    Kind("tstzrange", ("[2024-01-01 00:00+00,)",)),
    Kind("int4multirange", ("{[1,2],[5,9)}", "{}")),
    Kind("tstzmultirange", ("{[2024-01-01 00:00+00,)}",)),
)
_USERS = (
    Kind("kit.mood", ("happy", "so 'so'", "back\\slash")),
    Kind("kit.mood[]", ("{happy,\"so 'so'\"}",)),
    Kind("kit.positive", ("1", "5")),
    Kind("kit.label", ("a", "it's")),
    Kind("kit.numbers", ("{1,2}",)),
    Kind("kit.pair", ("(1,a)", '(,"it\'s \\\\ ""x"" ,")', "(,)")),
    Kind("kit.pair[]", ('{"(1,a)",NULL}',)),
    Kind("kit.good_pair", ("(1,a)",)),
    Kind("kit.text_range", ('[a,"b c")', "empty")),
)
KINDS: tuple[Kind, ...] = (
    *INTEGERS,
    Kind("bool", ("t", "f"), constant=True),
    *_NUMBERS,
    *_TEXTS,
    *_TIMES,
    *_NETWORK,
    *_DOCUMENTS,
    *_SHAPES,
    *_NAMES_OF_OBJECTS,
    *_COLLECTIONS,
    *_USERS,
)
# Values of all types, and texts that are no type's value.
ANY_VALUE = st.sampled_from([value for kind in KINDS for value in kind.values] + ["x", "99999999999", "''"])
