"""The grammar core against brute force: every document of a small language, enumerated from its definition."""

import math
import random
from collections import defaultdict

import pytest
from enumeration import language

from ltm_pyro.data.fables.grammar import Grammar
from ltm_pyro.data.fables.nodes import Case, Choice, Concat, Text, Variable, concat, maybe, one_of
from ltm_pyro.data.fables.script import Maybe, Script, paragraph
from ltm_pyro.errors import LTMError

HERO = Variable("hero", ("ann", "bo", "cy"), {(): (0.5, 0.3, 0.2)})
SEASON = Variable("season", ("dry", "wet"), {(): (0.6, 0.4)})
SKY = Variable("sky", ("sun", "rain", "snow"), {("dry",): (0.9, 0.1, 0.0), ("wet",): (0.0, 0.7, 0.3)}, ("season",))
TENSE = Variable("tense", ("past", "present"))
SHY = Variable("shy", ("yes", "no"), {(): (0.25, 0.75)})
VARIABLES = (HERO, SEASON, SKY, TENSE, SHY)


def word(variable, *forms):
    return Case((variable.name,), {(v,): Text(f) for v, f in zip(variable.values, forms, strict=True)})


def small_root():
    """Conditional variables, one that is often unmentioned, "put" in both tenses, and two ways to the same words."""
    hero = word(HERO, "Ann", "Bo", "Cy")
    verb = word(TENSE, "put", "put")
    dress = Case(("hero", "shy"), {(h, s): Text(s if h == "cy" else "a hat") for h in HERO.values for s in SHY.values})
    twice = Choice((Text("a a"), Concat((Text("a"), maybe(0.5, Text(" a"))))), (0.3, 0.7))
    return concat(
        [
            maybe(0.5, concat([Text("in "), word(SKY, "sun", "rain", "snow"), Text(" ")])),
            hero,
            Text(" "),
            one_of(verb, word(TENSE, "wore", "wears")),
            Text(" "),
            maybe(0.4, concat([dress, Text(" ")])),
            twice,
            maybe(0.2, word(SEASON, " (dry)", " (wet)")),
        ]
    )


SMALL = Grammar(VARIABLES, small_root())
SMALL_LANGUAGE = language(VARIABLES, small_root())


def test_log_probability_is_the_enumerated_sum_for_every_document():
    assert len(SMALL_LANGUAGE) == 420
    for text, p in SMALL_LANGUAGE.items():
        assert SMALL.log_prob(text) == pytest.approx(math.log(p), abs=1e-12)


def test_probabilities_of_the_whole_language_sum_to_one():
    assert math.fsum(math.exp(SMALL.log_prob(text)) for text in SMALL_LANGUAGE) == pytest.approx(1, abs=1e-12)


def test_log_probability_sums_over_ambiguous_derivations():
    # "a a" comes whole with 0.3, or in two pieces with 0.7 / 2; the tense of "put" is never told.
    grammar = Grammar((TENSE,), concat([word(TENSE, "put ", "put "), small_root().parts[-2]]))
    assert grammar.log_prob("put a a") == pytest.approx(math.log(0.3 + 0.35), abs=1e-12)
    assert len(grammar.posterior("put a a")) == 2


def test_a_plan_variable_that_is_not_mentioned_costs_nothing():
    grammar = Grammar((HERO, SHY), concat([Text("x"), maybe(0.5, word(HERO, "1", "2", "3"))]))
    assert grammar.log_prob("x") == pytest.approx(math.log(0.5), abs=1e-12)
    assert grammar.posterior("x") == {(): pytest.approx(math.log(0.5))}


def test_a_mention_of_a_child_sums_over_its_unmentioned_parent():
    grammar = Grammar((SEASON, SKY), word(SKY, "sun", "rain", "snow"))
    assert grammar.log_prob("rain") == pytest.approx(math.log(0.6 * 0.1 + 0.4 * 0.7), abs=1e-12)


@pytest.mark.parametrize("text", ["", "Ann", "Ann put a a a", " Ann put a", "Ann put a ", "in snow Ann put a (dry)"])
def test_text_outside_the_language_has_no_probability(text):
    assert text not in SMALL_LANGUAGE
    assert SMALL.log_prob(text) == -math.inf
    assert SMALL.posterior(text) == {}


def test_draws_follow_the_log_probabilities():
    rng = random.Random(3)
    draws = 5_000
    counts = defaultdict(int)
    for _ in range(draws):
        counts[SMALL.sample(rng).text] += 1
    common = sorted(SMALL_LANGUAGE, key=SMALL_LANGUAGE.__getitem__, reverse=True)[:30]
    for text in common:
        p = math.exp(SMALL.log_prob(text))
        # Thirty comparisons at 4.5 standard errors: a false alarm once in five thousand seeds, and the seed is fixed.
        assert abs(counts[text] / draws - p) < 4.5 * math.sqrt(p * (1 - p) / draws)


def test_a_derivation_is_at_most_as_probable_as_its_text():
    rng = random.Random(0)
    gaps = []
    for _ in range(300):
        draw = SMALL.sample(rng)
        gaps.append(SMALL.log_prob(draw.text) - draw.log_prob)
    assert min(gaps) > -1e-12
    assert max(gaps) > 0.1


def test_entropy_by_the_chain_rule_is_exact_without_ambiguity():
    root = concat(
        [
            word(SEASON, "dry ", "wet "),
            word(SKY, "sun ", "rain ", "snow "),
            Case(("sky",), {("sun",): one_of(Text("1"), Text("2")), ("rain",): Text("3"), ("snow",): Text("4")}),
            maybe(0.3, Case(("season",), {("dry",): Text("!"), ("wet",): maybe(0.1, Text("?"))})),
        ]
    )
    # The last part is ambiguous only for wet seasons ("" in two ways): leave it out to have no ambiguity at all.
    clear = Grammar((SEASON, SKY), Concat(root.parts[:3]))
    exact = -math.fsum(p * math.log(p) for p in language((SEASON, SKY), clear.root).values())
    assert clear.derivation_entropy() == pytest.approx(exact, abs=1e-12)
    blurred = Grammar((SEASON, SKY), root)
    exact = -math.fsum(p * math.log(p) for p in language((SEASON, SKY), root).values())
    assert blurred.derivation_entropy() > exact + 1e-3


def test_a_grammar_names_what_is_wrong_with_it():
    with pytest.raises(LTMError, match="'hero', which is no plan variable"):
        Grammar((SHY,), word(HERO, "1", "2", "3"))
    with pytest.raises(LTMError, match="no branch for \\('no',\\)"):
        Grammar((SHY,), Case(("shy",), {("yes",): Text("y")}))
    with pytest.raises(LTMError, match="'maybe' is no value of plan variable 'shy'"):
        Grammar((SHY,), Case(("shy",), {("yes",): Text(""), ("no",): Text(""), ("maybe",): Text("")}))
    with pytest.raises(LTMError, match="needs its parent 'season' before it"):
        Grammar((SKY, SEASON), Text(""))
    with pytest.raises(LTMError, match="2 probabilities that sum to 1"):
        Choice((Text("a"), Text("b")), (0.5, 0.6))
    with pytest.raises(LTMError, match="one of them twice"):
        Variable("v", ("a", "a"))


SCRIPT = Script({"hero": word(HERO, "ann", "bo", "cy")}, forms=("tense", ("past", "present")))


def test_the_notation_reads_slots_forms_choices_and_lists():
    root = paragraph(
        SCRIPT.prose("{Hero} [sat|sits <down|up>]."),
        Maybe(0.25, SCRIPT.lines("- So <it> goes\n  on.\n- End.")),
        SCRIPT.cases("shy", "yes:\n- Hush, {hero}.\nno:\n- Well."),
    )
    expected = language(VARIABLES, root)
    assert len(expected) == 3 * (1 + 2) * 3 * 2
    assert expected["Bo sits up. So it goes on. Hush, bo."] == pytest.approx(0.3 * 0.5 * 0.5 * 0.25 * 0.5 * 0.25)
    assert expected["Cy sat. Well."] == pytest.approx(0.2 * 0.5 * 0.75 * 0.75)


@pytest.mark.parametrize(
    ("prose", "message"),
    [("{villain} ran", "no slot {villain}"), ("[ran] off", "one form for each tense"), ("<a|b", "never closed")],
)
def test_the_notation_names_a_bad_mark(prose, message):
    with pytest.raises(LTMError, match=message):
        SCRIPT.prose(prose)


def test_a_list_without_a_dash_is_refused():
    with pytest.raises(LTMError, match="begin it with '- '"):
        SCRIPT.lines("no dash")
