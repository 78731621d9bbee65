"""How a fable begins: title, village, hero, companion, trouble, and the reason to leave home."""

from __future__ import annotations

from ltm_pyro.data.fables.lexicon import SCRIPT
from ltm_pyro.data.fables.script import paragraph

__all__ = ["HEROES", "TITLE", "TROUBLE"]

_script = SCRIPT.extended(
    habit=SCRIPT.cases(
        "quirk",
        """
        counts:
        - [counted|counts] everything twice
        hums:
        - [hummed|hums] when {they_he} [was|is] nervous
        sleeps:
        - [could|can] fall asleep anywhere
        embroiders:
        - never [told|tells] a story without adding a dragon
        worries:
        - [worried|worries] about falling stars
        collects:
        - [collected|collects] interesting pebbles
        maps:
        - [drew|draws] maps and [got|gets] lost in them
        rhymes:
        - [spoke|speaks] in rhyme on Thursdays
        eats:
        - [was|is] hungry from breakfast to supper
        argues:
        - [argued|argues] with the wind
        """,
    ),
    misfortune=SCRIPT.cases(
        "trouble",
        """
        well:
        - the well [ran|runs] dry
        sleep:
        - the children [forgot|forget] how to sleep
        bees:
        - the bees [flew|fly] away and [did|do] not come back
        mill:
        - the mill wheel [stopped|stops] turning
        songs:
        - everyone [forgot|forgets] the words to every song
        bread:
        - the bread [would|will] not rise
        quarrel:
        - the neighbours [quarrelled|quarrel] and [stopped|stop] speaking
        clock:
        - the village clock [stopped|stops] at ten to four
        hearth:
        - every fire in the village [went|goes] out
        colour:
        - the colour [went|goes] out of everything, even the carrots
        """,
    ),
)

TITLE = _script.lines("""
- {name} and the {title_treasure}
- The {title_kind}, the {title_friend_kind} and the {title_treasure}
- The {title_kind} of {place}
- {name} and {friend}
- The {title_treasure} of {place}
- How {name} Came to {goal}
- {saying}
""")

_VILLAGE = _script.cases(
    "tone",
    """
    cosy:
    - Come closer to the fire, for this is a story about {place}.
    - Here is a story for a <rainy|sleepy|long|cold> evening, and it begins in {place}.
    - Are you warm enough? Then let us go to {place}.
    - Tuck in your <tail|toes|ears>, and I will tell you about {place}.
    comic:
    - Every word of this story about {place} is true, apart from <two|six|the long ones|the dragon>.
    - Nothing ever [happened|happens] in {place}, apart from the following.
    - {place} [was|is] famous for its <puddles|turnips|aunts|drains>, and for nothing else until now.
    - If you have heard this story in {place}, you have heard it wrong.
    grave:
    - The old ones of {place} tell it this way.
    - Far from the king's road [stood|stands] the village of {place}.
    - This is remembered in {place}, and it should be remembered elsewhere.
    - There are few left in {place} who can tell this story, so listen.
    wry:
    - {place} [was|is] the sort of village where everyone [knew|knows] everything and nobody [was|is] asked.
    - Most stories about {place} are about cheese. This one is not.
    - Stories like to start far away, but this one starts in {place}.
    - They will tell you in {place} that nothing there needs mending. They are wrong.
    """,
)

_HERO = _script.lines("""
- {A_kind} called {name} [lived|lives] there, and {he} [wore|wears] {a_wear} <in all weathers|even to bed|every
  day>.
- A village needs {a_kind}, and this one [had|has] {name}, with {his} {wear} and {his}
  <quick|quiet|heavy|thoughtful> step.
- There [lived|lives] {name}, {a_kind}, in {a_wear} that [had|has] once been {his}
  <father's|mother's|grandfather's|great-aunt's>.
- You [could|can] tell {name} the {kind} by {his} {wear} <a mile away|even at night|in any crowd|from the church
  tower>.
- In the <smallest|oldest|crookedest|last> house [lived|lives] {name}, {a_kind} with {a_wear} and a good opinion of
  {himself}.
""")

_COMPANION = _script.lines("""
- {His} {bond} [was|is] {friend}, {a_friend_kind} who {habit}.
- {He} [had|has] {a_bond}, {a_friend_kind} called {friend}, who {habit}.
- {friend} the {friend_kind}, {his} {bond}, {habit}.
- Nobody [knew|knows] {him} better than {his} {bond} {friend}, {a_friend_kind} who {habit}.
""")

HEROES = paragraph(_VILLAGE, _HERO, _COMPANION)

_MISFORTUNE = _script.lines("""
- Then, one {weather} {season} <morning|evening|afternoon>, {misfortune}.
- One {weather} day in {season}, {misfortune}.
- It [was|is] a {weather} {season} when {misfortune}.
- The trouble [began|begins] on a {weather} {season} night: {misfortune}.
""")

_ERRAND = _script.lines("""
- "Only the {treasure} of {goal} can mend it," [said|says] the {elder}.
- "Somebody must fetch the {treasure} from {goal}," [said|says] the {elder}<, looking at nobody|, looking at
  everybody|>.
- "There is always the {treasure}," [said|says] the {elder}, "but it is at {goal}."
- "We need the {treasure} from {goal}," [said|says] the {elder}, "and I have <a bad knee|soup on|hens to feed>."
- "My grandmother spoke of the {treasure} of {goal}," [sighed|sighs] the {elder}.
""")

_DEPARTURE = _script.cases(
    "bond",
    """
    best friend:
    - {name} [packed|packs] {a_food}. "Half of that is mine," [said|says] {friend}.
    - {name} [took|takes] {a_food} and [found|finds] {friend} waiting at the corner.
    - "I will go," [said|says] {name}. {friend} [had|has] already packed {a_food}.
    old rival:
    - {name} [packed|packs] {a_food}. "I shall get there first," [said|says] {friend}.
    - {name} [took|takes] {a_food}. {friend} [took|takes] two, and [walked|walks] in front.
    - {name} [packed|packs] {a_food}. "Any {friend_kind} could do it faster," [said|says] {friend}, and [came|comes]
      too.
    cousin:
    - {name} [packed|packs] {a_food}. "Family goes with family," [said|says] {friend}.
    - An aunt [packed|packs] {a_food} for {name}, and [sent|sends] {friend} along to be useful.
    next-door neighbour:
    - {name} [packed|packs] {a_food}. {friend} [looked|looks] over the fence and [asked|asks] to come.
    - {name} [took|takes] {a_food} and [asked|asks] {friend} to water the beans. {friend} [came|comes] too, and
      [brought|brings] the beans.
    """,
)

_FAREWELL = _script.lines("""
- "{saying}," {his} <mother|father|great-aunt> [told|tells] {him} at the door.
- The {elder} [waved|waves] and [called|calls], "{saying}!"
- {His} <mother|father|great-aunt> [had|has] one piece of advice: "{saying}."
- "{saying}," [said|says] the {elder}, and [shut|shuts] the door.
- "{saying}," {name} [told|tells] {himself} at the <milestone|last house|edge of the village>.
""")

TROUBLE = paragraph(_MISFORTUNE, _ERRAND, _DEPARTURE, _FAREWELL)
