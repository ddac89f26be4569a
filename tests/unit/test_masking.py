"""Secrets in what others say."""

from __future__ import annotations

import pytest

from cachebus.base.masking import masked, without_arguments

QUOTED = ["'{}'", '"{}"', "`{}`", "redis://app:{}@host:6379/0", "redis://{}@host", "password={}", "?password={}&db=0"]
SECRETS = [
    "a",
    "redis",
    "password",
    "1",
    "6379",
    "hunter2",
    "Hunter",
    "p@ss w0rd!",
    "correcthorsebatterystaple",
    "***",
    "(",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("where", QUOTED)
def test_a_secret_is_masked_where_it_stands(secret: str, where: str) -> None:
    told = masked(f"it said {where.format(secret)}, and closed", [secret])
    assert told == f"it said {where.format('***')}, and closed"


@pytest.mark.parametrize("secret", ["hunter2", "Hunter", "p@ss w0rd!", "correcthorsebatterystaple"])
def test_what_no_sentence_has_of_itself_is_masked_anywhere(secret: str) -> None:
    assert masked(f"no such thing as {secret}, nor x{secret}y", [secret]) == "no such thing as ***, nor x***y"


@pytest.mark.parametrize("secret", ["a", "redis", "password", "at", "1", "6379", "invalid", "", " ", ":", "."])
def test_a_secret_that_is_an_ordinary_word_eats_no_other(secret: str) -> None:
    said = "redis at 127.0.0.1:6379 refused: WRONGPASS invalid username-password pair or user is disabled."
    assert masked(said, [secret]) == said


def test_of_two_secrets_the_longer_is_masked_whole() -> None:
    assert masked("'hunter2-more' and 'hunter2'", ["hunter2", "hunter2-more"]) == "'***' and '***'"


@pytest.mark.parametrize("arguments", ["'hunter2' ", "`hun", "'app' 'hunter2-that-is-cut-at-some-"])
def test_what_a_server_repeats_of_a_question_is_left_out(arguments: str) -> None:
    said = "ERR unknown command 'AUTH', with args beginning with:"
    assert without_arguments(f"{said} {arguments}") == f"{said} ***"
    assert without_arguments("WRONGPASS invalid") == "WRONGPASS invalid"
