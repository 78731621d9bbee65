"""Detokenizers, on lines that were chosen to be hard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltm_pyro.evaluation.zero_shot.detokenizers import (
    as_it_is,
    lambada,
    lm1b,
    penn_treebank,
    scientific_papers,
    wikitext,
)

PENN = {
    " nbc 's <unk> was n't N million \n": "nbc's ? wasn't 1 million",
    "viewers ' opinions of <unk> ' friends": "viewers' opinions of ? ' friends",
    "we 've said they 'll say i 'd say you 're what i 'm": "we've said they'll say i'd say you're what i'm",
    "$ N million or us$ N or c$ N a share": "$1 million or us$1 or c$1 a share",
    "the # N company at N N\\/N": "the #1 company at 1 N/N",
    "mgm\\/ua and \\*\\* in the '80s at&t & co.": "mgm/ua and ** in the '80s at&t & co.",
    "N N N": "1 1 1",
    "i.b.m. said N": "i.b.m. said 1",
    " one \n  two 's \n": "one\ntwo's",
}

WIKI = {
    "a guest @-@ starring role for $ 1 @,@ 500 of 2 @.@ 7 m": "a guest-starring role for $1,500 of 2.7 m",
    ' He said , " It is " ; " no ? " ( see [ 1 ] ) . ': 'He said, "It is"; "no?" (see [1]).',
    "the Beach Boys ' \" Surfer Girl \" , Smith 's": "the Beach Boys' \"Surfer Girl\", Smith's",
    "we were like , ' Yeah , we love this ' .": "we were like, 'Yeah, we love this'.",
    "rock ' n ' roll": "rock 'n' roll",
    "the ships ' AA defences and the boys ' toys": "the ships' AA defences and the boys' toys",
    "did n't , could n't ; they didn 't": "didn't, couldn't; they didn't",
    "= = Career = =": "== Career ==",
    "= = = 2000 – 2005 = = =": "=== 2000 – 2005 ===",
    " = Robert <unk> = ": "= Robert <unk> =",
    "y = 2": "y = 2",
    "at 50 ° above and 135 ° E , 20 ° C .": "at 50° above and 135°E, 20°C.",
    "34 % of { x }": "34% of {x}",
    "Sony / ATV 3 : 2": "Sony / ATV 3: 2",
    '" It goes on , and ends in the next paragraph .': '"It goes on, and ends in the next paragraph.',
    'It began before . "': 'It began before."',
    '" One " and " two " and " three': '"One" and "two" and " three',
    "a @ b @-@": "a @ b-",
    "= Title = \n \n = = Part = = \n Text . \n": "= Title =\n\n== Part ==\nText.",
    "": "",
}

NEWS = {
    "It isn 't so , she said : it 's \" not . \"": "It isn't so, she said: it's \"not.\"",
    "see http : / / www.example.com / a": "see http://www.example.com/a",
    "He paid $ 5 and £ 3 -- or 4 % ; and / or ( more ) !": "He paid $5 and £3 -- or 4%; and/or (more)!",
    "O 'Brien and d 'Arcy": "O'Brien and d'Arcy",
    "the players ' union , ' he said '": "the players' union, 'he said'",
    "back in the '90s": "back in the '90s",
}

PAPERS = {
    "we show that @xmath0 ( see @xcite ) , where @xmath1 .": "we show that @xmath0 (see @xcite), where @xmath1.",
    "[ fig1 ] shows it ; and / or\nn = 5 , p < 0.05 .": "[fig1] shows it; and/or\nn = 5, p < 0.05.",
}


@pytest.mark.parametrize(
    ("undo", "tokenised", "text"),
    [(f, *case) for f, cases in ((penn_treebank, PENN), (wikitext, WIKI), (lm1b, NEWS)) for case in cases.items()]
    + [(scientific_papers, *case) for case in PAPERS.items()],
)
def test_tokenised_text_is_written_as_people_write(undo, tokenised: str, text: str):
    assert undo(tokenised) == text


def test_lambada_has_straight_quotes_and_its_first_edition_is_joined():
    assert lambada(" “Yes,” he said. “It’s ‘me’”\n") == '"Yes," he said. "It\'s \'me\'"'
    assert lambada("`` i do n't know , '' said\nthe man") == '"i don\'t know," said\nthe man'


def test_text_that_nobody_tokenised_is_left_alone():
    assert as_it_is("  N 's  #39;s < a \n") == "N 's  #39;s < a"


@given(st.lists(st.text(st.characters(whitelist_categories=["L"]), min_size=1).filter(lambda w: w != "N")))
@pytest.mark.parametrize("undo", [penn_treebank, wikitext, lm1b, lambada, scientific_papers])
def test_words_without_marks_come_back_in_order(undo, words: list[str]):
    assert undo(" ".join(words)) == " ".join(words)


PLAIN = [
    "He said, \"It is (or so) done\"; it's $5, or 3% of Smith's.",
    "The boys' toys - 'old' ones - weren't at http://a.b/c?d=e at 20°C.",
    "One\n\nTwo, and three...",
]


@pytest.mark.parametrize("text", PLAIN)
@pytest.mark.parametrize("undo", [wikitext, lm1b, lambada, scientific_papers])
def test_plain_text_is_not_changed(undo, text: str):
    assert undo(text) == text


@given(st.text(st.sampled_from("ab'\"()s@-,. \nN°=$/[]<>%"), max_size=40))
@pytest.mark.parametrize("undo", [penn_treebank, wikitext, lm1b])
def test_no_letter_is_lost_and_no_line(undo, text: str):
    joined = undo(text)
    assert [c for c in joined if c in "ab"] == [c for c in text if c in "ab"]
    assert joined.count("\n") <= text.count("\n")
