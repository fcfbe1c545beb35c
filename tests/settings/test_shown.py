"""No password is kept, no control character shown."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.settings.shown import (
    is_secret_name,
    line_without_secrets,
    password_fault,
    plain,
    text_fault,
    threshold_texts,
    without_secrets,
)

SECRET = "hunter2"
WITH_A_PASSWORD = [
    "http://user:hunter2@host:5000",
    "https://hunter2@host",
    "HTTP://user:hunter2@host",
    "http://user%3Ahunter2@host",
    "http%3A%2F%2Fuser%3Ahunter2%40host",
    "http://user:hunter2%40x@host",
    "http://user:hun/hunter2@host",
    "http://user:a?hunter2@host",
    "http://user:a#hunter2@host",
    "http://user:a b hunter2@host",
    "http://:hunter2@host",
    "postgresql+psycopg2://mlflow:hunter2@host/mlflow",
    "postgresql://mlflow@host/mlflow?password=hunter2",
    "postgresql://mlflow@host/mlflow?sslmode=require&PASSWORD=hunter2",
    "postgresql://mlflow@host/mlflow?%70assword=hunter2",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BUID%3Da%3BPWD%3Dhunter2",
    "mysql+pymysql://root:hunter2@[::1]:3306/mlflow",
    "s3://AKIA:hunter2@bucket/runs",
    "s3://AKIA:abc/hunter2@bucket/runs",
    "s3://bucket/runs?access_key=AKIA&secret_key=hunter2",
    "s3://bucket/runs?region=a&session_token=hunter2",
    "s3://bucket/runs?endpoint_override=http%3A%2F%2Fu%3Ahunter2%40host",
    "s3://bucket/runs?X-Amz-Signature=hunter2",
    "abfs://container@account.dfs.core.windows.net/runs?sig=hunter2",
    "abfs://container/runs?accountKey=hunter2",
    "gs://bucket/runs#token=hunter2",
    "simplecache::s3://AKIA:hunter2@bucket/runs",
    "sqlite:///runs/mlflow.db?key=hunter2",
    "databricks://profile?token=hunter2",
    "postgresql://host/db?sslcert=/c.pem&sslpassword=hunter2",
    "http://host/path;password=hunter2",
    "az://container?connection_string=AccountName=a;AccountKey%3Dhunter2",
    "http://host/?next=password%3Dhunter2",
]
WITHOUT = [
    "http://mlflow.example.org:5000",
    "http://[::1]:5000/a@b",
    "http://host:5000/a@b",
    "https://host/path@v2?page=1",
    "postgresql://mlflow@host/mlflow",
    "postgresql://mlflow:@host/mlflow",
    "postgresql://host/mlflow?sslkey=/etc/key.pem&passfile=/home/me/.pgpass",
    "s3://bucket/runs?region=eu-north-1&endpoint_override=localhost:9000&scheme=http",
    "file:///mnt/runs-12:30@night",
    "sqlite:////tmp/100%/a@b:c/mlflow.db",
    "hf://datasets/owner/name@main",
    "runs/mlflow.db",
    "a question: what is key=value? ask me@home",
]


@pytest.mark.parametrize("uri", WITH_A_PASSWORD)
def test_a_password_in_an_address_is_found_and_not_repeated(uri):
    fault = password_fault(uri)

    assert fault is not None
    assert SECRET not in fault
    assert "environment" in fault
    assert SECRET not in line_without_secrets(f"tracking.uri={uri}")
    assert without_secrets({"uri": [uri]}) == {"uri": ["***"]}


@pytest.mark.parametrize("uri", WITHOUT)
def test_an_address_without_one_may_be_kept(uri):
    assert password_fault(uri) is None
    assert without_secrets(uri) == uri


@pytest.mark.parametrize("uri", ["user:hunter2@host", "//user:hunter2@host:5000"])
def test_what_is_meant_as_an_address_may_lack_its_scheme(uri):
    assert password_fault(uri) is None
    assert password_fault(uri, is_uri=True) is not None


def test_a_comment_of_a_file_counts_too():
    fault = text_fault("run: {}\n# was http://user:hunter2@host\n")

    assert fault is not None
    assert fault.startswith("line 2: holds a user's password")
    assert text_fault("# http://host:5000 by me@home.org\n") is None


@pytest.mark.parametrize(
    "name",
    "password db_password secret_key access_key apiKey sasToken session-token token pwd".split(),
)
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    "tokenizer micro_batch_tokens max_length keyboard monkey access_key_id 3 author uri".split(),
)
def test_names_of_no_secrets(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("thresholds", "texts"),
    [
        ([0.5123456, 0.7], ["0.5123", "0.7"]),
        ([0.50000013, 0.50000024], ["0.50000013", "0.50000024"]),
        ([0.5, 0.99999999], ["0.5", "0.99999999"]),
        ([], []),
    ],
)
def test_thresholds_are_told_apart_from_each_other_and_from_a_half(thresholds, texts):
    assert threshold_texts(thresholds, digits=4) == texts


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\x9b2Jb\x07\r\x00", "a\\x9b2Jb\\x07\\x0d\\x00"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\ud800 \U000e0041\ufeff\u2028", "\\ud800 \\U000e0041\\ufeff\\u2028"),
        ("Côte d'Ivoire, 日本\tمصر\n🇨🇱 👩‍👧", "Côte d'Ivoire, 日本\tمصر\n🇨🇱 👩‍👧"),
    ],
)
def test_what_steers_a_terminal_is_written_as_its_escape(text, shown):
    assert plain(text) == shown


@given(st.text())
def test_no_control_character_is_left_and_any_encoding_takes_it(text):
    shown = plain(text)

    assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Cs")} - {"\n", "\t"}
    shown.encode("utf-8")
