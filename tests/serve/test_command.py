"""`scpo serve`, as far as it gets without a model."""

import pytest

from scpo_ray.commands.serving import is_loopback, server_token
from scpo_ray.records import InputError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Chile"], "Chile: must be CULTURE=MODEL"),
        (["Chile=a", "Chile=b"], "Chile=b: a second model for Chile"),
        (["Chile=a", "--no-auth", "--host", "0.0.0.0"], "--no-auth: only on this machine's own"),
        (["Chile=a", "--token-file", "/nowhere"], "--token-file /nowhere: cannot be read"),
        (["Chile=a", "--set", "max_item=3"], "max_item = 3: no such setting"),
        (["Chile=a", "--set", "max_items=0"], "max_items = 0: must be greater than or equal to 1"),
        (["Chile=a", "--host", "192.0.2.1"], "192.0.2.1:8000: cannot be listened on"),
        (["Chile=a", "--host", "no such host"], "no such host:8000: cannot be listened on"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_said_at_once(scpo, arguments, said):
    ended = scpo("serve", *arguments)

    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err


@pytest.mark.parametrize("content", ["", "short", "with a blank in its middle", "a" * 15 + "\n"])
def test_a_token_that_is_none_is_refused(tmp_path, content):
    file = tmp_path / "token"
    file.write_text(content)

    with pytest.raises(InputError, match="must hold at least 16 printable characters"):
        server_token(file)


def test_a_token_comes_from_its_file_else_the_environment_else_is_made(
    tmp_path, monkeypatch, caplog
):
    file = tmp_path / "token"
    file.write_text("the-token-of-the-file\n")
    monkeypatch.setenv("SCPO_TOKEN", "the-token-of-the-environment")

    assert server_token(file) == "the-token-of-the-file"
    assert server_token(None) == "the-token-of-the-environment"
    monkeypatch.delenv("SCPO_TOKEN")
    with caplog.at_level("INFO", "scpo_ray"):
        made = server_token(None)
    assert len(made) > 40
    assert made in caplog.text


@pytest.mark.parametrize(
    ("host", "found"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_a_loopback_address_is_known(host, found):
    assert is_loopback(host) is found
