"""The plan of a fable: its variables, with their probabilities, and the words in which a story refers to them."""

from __future__ import annotations

from ltm_pyro.data.fables.nodes import Case, Node, Text, Variable
from ltm_pyro.data.fables.script import Script

__all__ = ["IDENTITY", "SCRIPT", "VARIABLES", "variable"]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(","))


_WEATHER = _listed("rainy, misty, blustery, mild, thundery, hot, golden, frosty, snowy, still")
_WEATHER_IN = {
    "spring": {"rainy": 0.3, "misty": 0.2, "blustery": 0.3, "mild": 0.2},
    "summer": {"thundery": 0.2, "hot": 0.4, "golden": 0.3, "still": 0.1},
    "autumn": {"rainy": 0.3, "misty": 0.3, "blustery": 0.2, "golden": 0.2},
    "winter": {"frosty": 0.4, "snowy": 0.4, "still": 0.2},
}

VARIABLES = (
    Variable(
        "name",
        _listed(
            "Bramble, Fennel, Juniper, Quill, Sorrel, Moss, Clover, Thistle, Pip, Teasel,"
            "Rowan, Ember, Linden, Tansy, Burdock, Pepper, Flint, Barley, Nettle, Plum"
        ),
    ),
    Variable(
        "kind",
        _listed(
            "hedgehog, badger, otter, mouse, hare, fox, squirrel, mole,"
            "stoat, weasel, beaver, vole, dormouse, rabbit, marten, shrew"
        ),
    ),
    Variable("pronoun", ("she", "he")),
    Variable(
        "friend",
        _listed(
            "Wick, Marlow, Tumble, Jory, Dabble, Pocket, Ludo, Finch, Biscuit, Tuppence,"
            "Merrit, Scoot, Ollie, Perrin, Button, Fidget, Corin, Noggin, Jessamy, Toggle"
        ),
    ),
    Variable(
        "friend_kind",
        _listed("frog, magpie, snail, newt, toad, wren, cricket, bat, duck, jackdaw, owl, lizard"),
    ),
    Variable("bond", ("best friend", "old rival", "cousin", "next-door neighbour"), {(): (0.4, 0.3, 0.15, 0.15)}),
    Variable("quirk", _listed("counts, hums, sleeps, embroiders, worries, collects, maps, rhymes, eats, argues")),
    Variable(
        "place",
        _listed(
            "Applewick, Lowfen, Millhollow, Saltwhistle, Nettlecombe, Pennywell, Duckmarsh, Cobbleford,"
            "Honeydown, Tillerby, Foxley Green, Wrenbridge, Barleymow, Puddlestone, Larkham, Mossgate,"
            "Candlewick, Hobbin, Sedgely, Orchard End"
        ),
    ),
    Variable(
        "elder", _listed("miller, postmistress, bell-ringer, schoolteacher, mayor, blacksmith, baker, ferrywoman")
    ),
    Variable("season", ("spring", "summer", "autumn", "winter")),
    Variable(
        "weather",
        _WEATHER,
        {(season,): tuple(odds.get(w, 0.0) for w in _WEATHER) for season, odds in _WEATHER_IN.items()},
        parents=("season",),
    ),
    Variable(
        "wear",
        _listed(
            "red scarf, straw hat, patched cloak, green waistcoat, spotted kerchief, feathered cap,"
            "woollen shawl, blue coat, leather satchel, striped jumper, tall black hat, orange mitten"
        ),
    ),
    Variable("trouble", _listed("well, sleep, bees, mill, songs, bread, quarrel, clock, hearth, colour")),
    Variable(
        "treasure",
        _listed(
            "silver bell, brass lantern, amber comb, copper kettle, glass acorn, golden spoon, iron key,"
            "bone flute, pearl button, velvet purse, crystal thimble, wooden crown, broken compass, jade whistle,"
            "painted egg, scarlet ribbon, ebony fiddle, moonstone mirror, tin trumpet, paper crane"
        ),
    ),
    Variable(
        "goal",
        _listed(
            "the Whispering Tower, the Hill of Bells, the Glass Mountain, the Drowned Chapel,"
            "the Moonlit Quarry, the Giant's Orchard, the Cave of Echoes, the Lonely Lighthouse, the Hollow Oak,"
            "the Seventh Bridge, the House of Clocks, the Frozen Lake, the Garden of Statues,"
            "the Crooked Castle, the Valley of Kites, the Windy Stair"
        ),
    ),
    Variable(
        "saying",
        (
            "Slow feet still arrive",
            "Every knot has two ends",
            "A small lamp is still a lamp",
            "Ask first and bite later",
            "The road is longer for the proud",
            "Rain never asks your name",
            "What is shared is never lost",
            "Even the moon begins as a sliver",
            "One step, then its brother",
            "No door is only a wall",
            "Mud dries and pride does not",
            "The kettle sings before it pours",
            "Count your friends, not your miles",
            "A closed paw catches nothing",
            "Look twice at the quiet ones",
            "There is always one more stair",
        ),
    ),
    Variable(
        "food",
        _listed(
            "seed cake, plum pie, jar of honey, round of cheese, onion tart, rye loaf, bag of hazelnuts,"
            "pot of bean stew, ginger biscuit, turnip pasty, apple dumpling, basket of cherries"
        ),
    ),
    # Half of the stories meet no obstacle and half no twist, so that there are short ones and long ones.
    Variable(
        "obstacle",
        _listed("river, hedge, fog, bridge, gate, bog, cliff, bear, crossroads, forest, none"),
        {(): (*[0.05] * 10, 0.5)},
    ),
    Variable(
        "helper",
        _listed(
            "old tortoise, one-eyed cat, white moth, lame donkey, tinker, scarecrow,"
            "charcoal burner, beekeeper, blind pedlar, grey goose, piper, travelling dentist"
        ),
    ),
    Variable(
        "virtue",
        _listed(
            "patience, courage, kindness, honesty, humility, cleverness, generosity, perseverance, loyalty, curiosity"
        ),
    ),
    Variable(
        "twist",
        _listed("guardian, trade, flight, smallness, double, found, spider, voice, none"),
        {(): (*[0.0625] * 8, 0.5)},
    ),
    Variable("tone", ("cosy", "comic", "grave", "wry"), {(): (0.3, 0.3, 0.2, 0.2)}),
    Variable("tense", ("past", "present"), {(): (0.7, 0.3)}),
)

# Always told, each in so many words: the split of a fable rests on these, the first of which is uniform.
IDENTITY = ("name", "kind", "friend", "place", "treasure", "virtue")

_WORDS = {
    "him": ("pronoun", {"she": "her", "he": "him"}),
    "his": ("pronoun", {"she": "her", "he": "his"}),
    "himself": ("pronoun", {"she": "herself", "he": "himself"}),
    # The companion takes the other pronoun, so that a reader always knows who is meant.
    "they_he": ("pronoun", {"she": "he", "he": "she"}),
    "they_him": ("pronoun", {"she": "him", "he": "her"}),
    "they_his": ("pronoun", {"she": "his", "he": "her"}),
    "danger": (
        "obstacle",
        {
            "river": "the river",
            "hedge": "the thorns",
            "fog": "the fog",
            "bridge": "the goat",
            "gate": "the gate",
            "bog": "the bog",
            "cliff": "the cliff",
            "bear": "the bear",
            "crossroads": "the crossroads",
            "forest": "the forest",
            "none": "the hill",
        },
    ),
}


def variable(name: str) -> Variable:
    """The plan variable of that name."""
    return next(variable for variable in VARIABLES if variable.name == name)


def _article(noun: str) -> str:
    vowel = noun[0].lower() in "aeiou" and not noun.startswith("one-")
    return f"{'an' if vowel else 'a'} {noun}"


def _slots() -> dict[str, Node]:
    by_name = {variable.name: variable for variable in VARIABLES}
    slots: dict[str, Node] = {
        name: Case((name,), {(value,): Text(value) for value in variable.values}) for name, variable in by_name.items()
    }
    slots["he"] = slots["pronoun"]
    for slot, (name, words) in _WORDS.items():
        slots[slot] = Case((name,), {(value,): Text(word) for value, word in words.items()})
    for name in ("kind", "friend_kind", "bond", "wear", "treasure", "food", "helper"):
        values = by_name[name].values
        slots[f"a_{name}"] = Case((name,), {(value,): Text(_article(value)) for value in values})
        slots[f"title_{name}"] = Case((name,), {(value,): Text(value.title()) for value in values})
    return slots


SCRIPT = Script(_slots(), forms=("tense", ("past", "present")))
