"""What of a model's answer becomes a title."""

from __future__ import annotations

import random
from unicodedata import category

import pytest

from chatapi.replies.title_text import MOST_TITLE_CHARACTERS, clean_title
from chatapi.schemas import Name

FIRST_NAME = "A trip to Rome"


@pytest.mark.parametrize(
    "answer",
    [
        FIRST_NAME,
        f"  {FIRST_NAME}.  ",
        f"\n\r\n{FIRST_NAME}\n\nIt fits because …",
        f'"{FIRST_NAME}"',
        f'"{FIRST_NAME}."',
        f'"{FIRST_NAME}".',
        f"“{FIRST_NAME}”",
        f"«{FIRST_NAME}»",
        f"„{FIRST_NAME}“",
        f"'{FIRST_NAME}'",
        f"**{FIRST_NAME}**",
        f"*{FIRST_NAME}*",
        f"__{FIRST_NAME}__",
        f"`{FIRST_NAME}`",
        f"# {FIRST_NAME}",
        f"### **{FIRST_NAME}**",
        f"- {FIRST_NAME}",
        f"> {FIRST_NAME}",
        f"Title: {FIRST_NAME}",
        f'**Title:** "{FIRST_NAME}"',
        f"**Title: {FIRST_NAME}.**",
        f"Title:\n{FIRST_NAME}",
        f"```\n{FIRST_NAME}\n```",
        f"---\n{FIRST_NAME}",
        "A  trip\tto\u00a0Rome",
        "A trip \u202eto\u2066 Rome\u200f",
        "A\x00 trip\x07 to \x1bRome",
        "\ufeffA trip to Rome\u2028and more",
    ],
)
def test_title_is_bare_however_the_model_dresses_it(answer: str) -> None:
    assert clean_title(answer) == FIRST_NAME


@pytest.mark.parametrize(
    "title",
    [
        "Learning C#",
        "What is Node.js?",
        "Titles of books",
        '"Hamlet" and "Macbeth"',
        "The users' guide",
        "1 + 1 = 2",
        "-40 degrees",
        "*args and **kwargs",
        "سفر به روم",
        "می\u200cخواهم",
        "\U0001f469\u200d\U0001f680 astronauts",
        "旅行、ローマへ",
        "🎉",
    ],
)
def test_title_keeps_what_belongs_to_it(title: str) -> None:
    assert clean_title(title) == title


@pytest.mark.parametrize("answer", ["", " \n\t\n", "...", "---", '""', "**", "\u202e\u2066", "\u200b", "Title:"])
def test_there_is_no_title_when_the_answer_says_nothing(answer: str) -> None:
    assert clean_title(answer) is None


def test_long_title_is_cut() -> None:
    title = clean_title("word " * 200)

    assert title is not None
    assert MOST_TITLE_CHARACTERS - 5 < len(title) <= MOST_TITLE_CHARACTERS
    assert title.endswith("word…")


@pytest.mark.parametrize("seed", range(300))
def test_title_is_one_that_a_user_could_give_whatever_the_model_answers(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    alphabet = "ab \n\t\r\x00\x1b\x85\u2028\u200d\u202e\u2066\u061c\ud800\ufeff#*_`\"'“”«»>.:-é字😀\U000e0041"
    answer = "".join(chance.choice(alphabet) for _ in range(chance.choice([1, 5, 40, 900])))

    title = clean_title(answer)

    if title is None:
        assert not any(character.isalpha() for character in answer.replace("\ufeff", ""))
    else:
        assert Name(shortest=1, longest=200, trim=True).deserialize(title) == title
        assert not {category(character) for character in title} & {"Cc", "Cs", "Zl", "Zp"}
