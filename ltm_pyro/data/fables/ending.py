"""How a fable ends: the treasure, the way home, the mended trouble, and a moral that names the virtue."""

from __future__ import annotations

from ltm_pyro.data.fables.lexicon import SCRIPT, variable
from ltm_pyro.data.fables.script import Maybe, paragraph

__all__ = ["HOMECOMING", "MORAL", "TREASURE"]

_script = SCRIPT.extended(
    recovery=SCRIPT.cases(
        "trouble",
        """
        well:
        - the well [filled|fills] to the brim
        sleep:
        - every child in the village [yawned|yawns]
        bees:
        - the bees [came|come] home in a long gold ribbon
        mill:
        - the mill wheel [groaned|groans], [shook|shakes] itself and [turned|turns]
        songs:
        - the songs [came|come] back, verses and all
        bread:
        - every loaf in the ovens [rose|rises] like a small sun
        quarrel:
        - the neighbours [talked|talk] until the lamps [ran|run] dry
        clock:
        - the village clock [cleared|clears] its throat and [struck|strikes] four
        hearth:
        - every chimney in the village [began|begins] to smoke
        colour:
        - the colour [came|comes] back, to the carrots first
        """,
    ),
    encore=SCRIPT.cases(
        "quirk",
        """
        counts:
        - {friend} [counted|counts] the guests, and then [counted|counts] them again
        hums:
        - {friend} [hummed|hums] all evening, and not from nerves
        sleeps:
        - {friend} [fell|falls] asleep during the <first|second> toast
        embroiders:
        - in {friend}'s account of it there [was|is] also a dragon
        worries:
        - {friend}, for once, [trusted|trusts] the stars to stay where they [were|are]
        collects:
        - {friend} [gave|gives] a pebble to every guest
        maps:
        - {friend} [drew|draws] a map of it all, with the village in the wrong place
        rhymes:
        - it [was|is] a Thursday, so {friend} [thanked|thanks] everyone in rhyme
        eats:
        - {friend} [ate|eats] enough for five
        argues:
        - {friend} [went|goes] outside to tell the wind that it [had|has] lost
        """,
    ),
)

_ARRIVAL = _script.lines("""
- And so they [came|come] to {goal}.
- {Goal} [was|is] <smaller|older|quieter|colder> than in the stories.
- They [reached|reach] {goal} <at noon exactly|in the last of the light|just before supper|without noticing>.
- There at last [was|is] {goal}, <with nobody in it|just as the {helper} [had|has] said|looking the other way>.
""")

_PRIZE = _script.cases(
    "twist",
    """
    guardian:
    - A lonely giant [guarded|guards] the {treasure}. "Nobody ever stays for tea," the giant [said|says]. They
      [stayed|stay] for three pots.
    - The {treasure} [lay|lies] between the paws of a stone lion. "Ask me nicely," [said|says] the lion, and nobody
      [was|is] more surprised than {friend} when that [worked|works].
    trade:
    - A raven [sat|sits] on the {treasure}. "A thing for a thing," it [said|says]. {name} [looked|looks] at {his}
      {wear} once more, and [gave|gives] it up.
    - The keeper [wanted|wants] something well loved in exchange for the {treasure}, so {name} [gave|gives] up {his}
      {wear}.
    flight:
    - {friend} [snatched|snatches] the {treasure} and [ran|runs]. An hour later {they_he} [came|comes] back and
      [put|puts] it in {name}'s lap, and neither of them [spoke|speaks] of it again.
    - In the night {friend} [thought|thinks] of what the {treasure} [would|will] fetch at market. In the morning
      {they_he} [told|tells] {name} so, and they both [laughed|laugh], and [took|take] it home.
    smallness:
    - The {treasure} [was|is] dented, dusty and not at all like the pictures. "Is that all?" [said|says] {friend}.
      {name} [carried|carries] it as if it were the moon.
    - They [walked|walk] past the {treasure} twice, because it [was|is] so plain. The third time, {friend}
      [sat|sits] on it.
    double:
    - There [were|are] <nine|forty|a hundred> of them, all alike, and only one true {treasure}. {name} [shut|shuts]
      {his} eyes and [chose|chooses] the one that [was|is] warm.
    - Two of them [lay|lie] there, one bright and one dull. {friend} [reached|reaches] for the bright one. {name}
      [chose|chooses] the dull one, and [chose|chooses] well.
    found:
    - The {treasure} [was|is] gone, and in its place there [was|is] a note: "Look in your sack." There it
      [lay|lies], where the {food} [had|has] been.
    - The hiding place [was|is] empty. They [were|are] halfway home before {friend} [found|finds] the {treasure} in
      {they_his} own luggage, and nobody ever [learned|learns] how.
    spider:
    - A spider [had|has] built her web over the {treasure}. {name} [waited|waits] while she [moved|moves] it, thread
      by thread, to the window.
    - The {treasure} [hung|hangs] in a great web. "Mind the third thread," [said|says] the spider, and {name}
      [minded|minds] it.
    voice:
    - "Tell me a story that I have not heard," [said|says] a voice in the dark. {friend} [told|tells] it all about
      {place}, from the ducks to the drains, and the {treasure} [dropped|drops] at their feet.
    - "What is the best thing in the world?" [asked|asks] a voice in the dark. "Supper in {place}," [said|says]
      {friend}, and the {treasure} [slid|slides] out into the light.
    none:
    - The {treasure} [hung|hangs] on a nail, where anyone might have taken it.
    - The {treasure} [lay|lies] on a <stone|shelf|doorstep>, as if it [had|has] been waiting.
    - The {treasure} [was|is] <behind the door|under the mat|on the top step>, in plain sight.
    """,
)

_RETURN = _script.lines("""
- Going home [was|is] shorter, as it always is.
- "{saying}," [said|says] {friend} all the way home, as though {they_he} [had|has] made it up.
- On the way home even {danger} [seemed|seems] smaller.
- They [sang|sing] nothing on the way home, but they [walked|walk] in step.
- They [found|find] the {helper} gone, and on a stone, in chalk, the words "{saying}."
""")

TREASURE = paragraph(_ARRIVAL, _PRIZE, Maybe(0.2, _RETURN))

_MENDED = _script.lines("""
- In {place} the {elder} [held|holds] up the {treasure}, and {recovery}.
- All of {place} [came|comes] out to see the {treasure}, and {recovery}.
- {name} [carried|carries] the {treasure} up the <only|steep|long> street of {place}, and {recovery}.
- The {treasure} [came|comes] to {place} at <dawn|dusk|midnight|noon>, and {recovery}.
- Before the {treasure} [was|is] halfway through {place}, {recovery}.
""")

_FEAST = _script.lines("""
- There [was|is] a feast, with {a_food} on every table, and {encore}.
- At supper there [was|is] {a_food} for everybody, and {encore}.
- Somebody [brought|brings] out {a_food}, and then another, and {encore}.
""")

_KEEPING = _script.lines("""
- They put the {treasure} in the square, where anyone [might|may] touch it.
- The {treasure} [was|is] given a shelf in the square, and the shelf [was|is] given a small roof.
- The {treasure} [was|is] lent to any village that [asked|asks] for it, and it always [came|comes] back.
- The {treasure} [went|goes] from house to house, a week at a time, like a cat.
- Next {season} {name} and {friend} [carried|carry] the {treasure} back to {goal}, since it [was|is] only borrowed.
- {name} [buried|buries] the {treasure} under the oldest apple tree, and [told|tells] only {friend} where.
- The {treasure} lies under an apple tree now, and the apples are <excellent|a little odd|never sour>.
- {name} [gave|gives] the {treasure} to {friend} to look after, and that [settled|settles] something between them.
- The {treasure} [went|goes] home with {friend}, who [polished|polishes] it on Sundays.
- {name} [sent|sends] the {treasure} to the {helper}, who [sent|sends] it back with a cheese.
""")

_NEW_CLOTHES = _script.lines("""
- On {name}'s peg [hung|hangs] a new {wear}, and {friend} [would|will] not say where it [had|has] come from.
- As for the {wear}, {name} [said|says] that {he} [did|does] not miss it, and {friend} [pretended|pretends] to
  believe {him}.
""")

_OLD_CLOTHES = _script.lines("""
- {name}'s {wear} [was|is] never clean again, and {he} [was|is] proud of every stain.
- {name} [hung|hangs] {his} {wear} on its peg and [slept|sleeps] for two days.
- Half the young ones of {place} soon [wanted|want] {a_wear} like {name}'s.
""")

_CLOTHES = SCRIPT.when(variable("twist"), "trade", _NEW_CLOTHES, _OLD_CLOTHES)

HOMECOMING = paragraph(_MENDED, Maybe(0.3, _FEAST), Maybe(0.3, _KEEPING), Maybe(0.2, _CLOTHES))

_LESSON = _script.cases(
    "tone",
    """
    cosy:
    - If you pass through {place} on a {weather} {season} night, ask {name} and {friend} how warm {virtue} can be.
    - So sleep well, and keep a little {virtue} beside the bed, as {name} the {kind} does in {place}.
    - {name} and {friend} always say that a journey needs boots and {virtue}, and that boots can be borrowed.
    - That is how {virtue} came to {place} with {name} and {friend}, and it has not left yet.
    comic:
    - The moral, says {name}, is {virtue}. The moral, says {friend}, is lunch.
    - {place} [put|puts] up a statue of {virtue}. It looks exactly like {name}, apart from the nose.
    - Nobody in {place} can spell {virtue}, but thanks to {name} the {kind} they all know what it looks like.
    - So learn {virtue} while you are young, or else travel with {a_friend_kind} like {friend}.
    grave:
    - Walls fall and treasures tarnish, but {virtue} is handed on, and it was {name} who brought it to {place}.
    - It [was|is] not the {treasure} that [saved|saves] {place}. It [was|is] the {virtue} of one small {kind}.
    - When the old ones of {place} speak of {virtue}, they say only a name, and the name is {name}.
    - Remember {name} and {friend}, who [had|have] nothing but {virtue} and [found|find] it enough.
    wry:
    - They say in {place} that {virtue} is its own reward. {name} also [got|gets] the rest of the {food}.
    - {Virtue} [had|has] done it, as it often does when {name} and {friend} have tried everything sensible first.
    - The {elder} [wrote|writes] it all down and [gave|gives] the credit to the {treasure}. {friend}
      [crossed|crosses] that out and [put|puts] "{virtue}."
    - {place} has a great many clever people in it. What it had needed was {name}, and {virtue}.
    """,
)

_LAST_WORDS = _script.lines("""
- Over {name}'s door it still says: {saying}.
- "{saying}," as {friend} likes to say.
- And whenever it is {weather} in {season}, somebody in {place} says it again: "{saying}."
- And {danger}? Ask {friend}.
""")

MORAL = paragraph(_LESSON, Maybe(0.25, _LAST_WORDS))
