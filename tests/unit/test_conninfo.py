"""Connection strings: what reaches libpq, which field is wrong, and the name in pg_stat_activity."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.target import (
    Target,
    application_name,
    parse_session_settings,
    target_from_extra,
)

PARAMS = {"host": "pool", "port": 6432, "user": "u", "password": "geheim", "dbname": "d"}


@given(st.text(), st.text(), st.text(), st.integers(min_value=-1, max_value=10**6))
@example("d" * 250, "t" * 250, "scheduled__2026-11-22T06:00:00+00:00", 1023)
@example("dag", "task", "r" * 250, -1)
@example("ü" * 80, "task", "manual__2026-11-22T06:00:00.123+00:00", 0)
def test_application_name_is_shown_whole_by_postgresql(dag: str, task: str, run: str, index: int) -> None:
    name = application_name(dag, task, run, index)

    assert len(name.encode()) <= 63
    assert all(" " <= character <= "~" for character in name)
    if index >= 0:
        assert f"[{index}] " in name


WORD = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz_0123456789"), min_size=1, max_size=250)


@given(WORD, WORD)
def test_application_name_keeps_dag_task_and_date_recognisable(dag: str, task: str) -> None:
    name = application_name(dag, task, "scheduled__2026-11-22T06:00:00+00:00")

    shown, _, when = name.rpartition(" ")
    shown_dag, _, shown_task = shown.partition(".")
    assert when == "2026-11-22T06:00:00"
    for short, whole in ((shown_dag, dag), (shown_task, task)):
        begin, cut, end = short.partition("~")
        assert whole.startswith(begin)
        assert whole.endswith(end)
        assert short == whole or (cut and len(begin) >= 8 and len(end) >= 8)


def test_application_name_that_fits_is_not_cut() -> None:
    name = application_name("sales", "load_orders", "scheduled__2026-11-22T06:00:00+00:00", 3)

    assert name == "sales.load_orders[3] 2026-11-22T06:00:00"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pooling_mode", "statement"),
        ("password_required", "perhaps"),
        ("direct_port", "70000"),
        ("direct_port", "x"),
        ("direct_port", 0),
        ("session_settings", "not json"),
        ("session_settings", "[1]"),
        ("session_settings", {"work_mem; drop": "1"}),
        ("session_settings", {"work_mem": ["1"]}),
        ("session_settings", {"work_mem": None}),
    ],
)
def test_a_wrong_field_is_named_with_its_connection(field: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        target_from_extra("crm_db", PARAMS, {field: value})

    assert field in str(caught.value)
    assert "crm_db" in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("password_required", "maybe"), ("session_settings", ["a"]), ("pooling_mode", "x")]
)
def test_a_wrong_argument_is_not_blamed_on_the_connection(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"argument '{name}' is '(maybe|list|x)', but must be"):
        target_from_extra("crm_db", PARAMS, {name: None}, {name: value})
    with pytest.raises(UsageError, match=f"field '{name}' of the connection is"):
        target_from_extra("crm_db", PARAMS, {name: value}, {"job_schema": "jobs"})
    # An argument comes before the field.
    assert target_from_extra("crm_db", PARAMS, {name: value}, {name: None}).conn_id == "crm_db"


def test_fields_of_the_form_may_be_empty_or_text() -> None:
    extra = {
        "pooling_mode": "",
        "password_required": "false",
        "direct_host": None,
        "direct_port": "5432",
        "session_settings": '{"work_mem": "64MB", "jit": false, "statement_timeout": 5}',
    }

    target = target_from_extra("crm_db", PARAMS, extra)

    assert target.pooling_mode == "none"
    assert target.password_required is False
    assert (target.direct_host, target.direct_port) == (None, 5432)
    assert target.session_settings == {"work_mem": "64MB", "jit": "off", "statement_timeout": "5"}


def test_settings_of_an_operator_are_checked_alike() -> None:
    assert parse_session_settings("x", {"airflow_dblink.tag": True}) == {"airflow_dblink.tag": "on"}
    assert parse_session_settings("x", None) == {}
    with pytest.raises(UsageError, match="argument 'session_settings' is 'list'"):
        parse_session_settings("x", ["a"])
    with pytest.raises(UsageError, match=r"argument 'session_settings\.work_mem' is 'list'"):
        parse_session_settings("x", {"work_mem": []})


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1))
def test_any_password_reaches_libpq_unchanged(password: str) -> None:
    conninfo = Target("crm_db", {**PARAMS, "password": password}).conninfo()

    assert conninfo_to_dict(conninfo)["password"] == password


def test_the_direct_address_replaces_the_poolers() -> None:
    target = Target("c", {**PARAMS, "hostaddr": "10.0.0.1"}, direct_host="db", direct_port=5432)

    direct = conninfo_to_dict(target.conninfo(direct=True))
    assert (direct["host"], direct["port"]) == ("db", "5432")
    assert "hostaddr" not in direct
    pooled = conninfo_to_dict(target.conninfo())
    assert (pooled["host"], pooled["port"], pooled["hostaddr"]) == ("pool", "6432", "10.0.0.1")


def test_only_the_direct_port_keeps_the_host() -> None:
    direct = conninfo_to_dict(Target("c", PARAMS, direct_port=5432).conninfo(direct=True))

    assert (direct["host"], direct["port"]) == ("pool", "5432")


def test_an_application_name_of_the_connection_wins() -> None:
    own = Target("c", {**PARAMS, "application_name": "mine"}).conninfo(application_name="theirs")

    assert conninfo_to_dict(own)["application_name"] == "mine"


def test_an_option_that_libpq_does_not_know_is_named_and_nothing_else_is_told() -> None:
    with pytest.raises(UsageError) as caught:
        Target("crm_db", {**PARAMS, "ssl_mode": "require"}).conninfo()

    assert "ssl_mode" in str(caught.value)
    assert "crm_db" in str(caught.value)
    assert "geheim" not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_a_password_with_nul_is_refused_without_showing_it() -> None:
    with pytest.raises(UsageError) as caught:
        Target("crm_db", {**PARAMS, "password": "geh\0eim"}).conninfo()

    assert "eim" not in str(caught.value).replace("crm_db", "")


def test_a_target_does_not_show_its_password() -> None:
    assert "geheim" not in repr(Target("crm_db", PARAMS))


@pytest.mark.parametrize(
    ("params", "brings"),
    [
        ({"password": "x"}, True),
        ({"sslcert": "c.pem"}, True),
        ({"gssdelegation": 1}, True),
        ({"password": ""}, False),
        ({"passfile": "p"}, False),
        ({"service": "s"}, False),
        ({}, False),
    ],
)
def test_what_counts_as_a_credential_of_the_connection(params: dict[str, Any], brings: bool) -> None:
    assert Target("c", params).brings_credential is brings


def test_what_airflows_form_sends_for_a_masked_field_is_the_safe_side() -> None:
    assert target_from_extra("c", {}, {"password_required": "***"}).password_required is True


def test_who_waits_notices_a_network_that_has_gone_unless_the_connection_says_otherwise() -> None:
    target = Target("x", {"host": "db", "keepalives_idle": "7"})

    waiting = conninfo_to_dict(target.conninfo(direct=True))
    assert (waiting["keepalives_idle"], waiting["tcp_user_timeout"]) == ("7", "60000")
    assert "tcp_user_timeout" not in target.conninfo()
