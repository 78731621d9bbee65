"""The middle of a fable: the road, what bars it, and the stranger who helps those who have the virtue."""

from __future__ import annotations

from ltm_pyro.data.fables.lexicon import SCRIPT, variable
from ltm_pyro.data.fables.nodes import Text, concat, maybe
from ltm_pyro.data.fables.script import Maybe, paragraph

__all__ = ["OBSTACLE", "STRANGER"]

_ROAD = SCRIPT.lines("""
- For <two|three|four|five> days they [walked|walk] <through stubble fields|under tall clouds|along the old salt
  road|past empty barns>.
- They [walked|walk] until their shadows [were|are] <too long|as thin as string|too tired to follow>.
- The road to {goal} [went|goes] <over|around|past> <a hill shaped like a loaf|seven small woods|a sleeping
  village>.
- They [followed|follow] the <moon|swallows|smell of pine|cart tracks> for <two|three|four> days.
""")

_BARRED = SCRIPT.cases(
    "obstacle",
    """
    river:
    - They [came|come] to a river in flood, brown and loud and as wide as a field.
    - A river [lay|lies] across the way, and its <ferry|bridge|ford> [had|has] gone off in the night.
    - Beyond the next hill there [was|is] a river, and no bridge at all.
    hedge:
    - Then the way [was|is] shut by a hedge of thorns, <taller than a church|older than the road>.
    - A hedge of thorns [ran|runs] from one end of the world to the other, and it [had|has] already eaten a cart.
    fog:
    - Then a fog [came|comes] down, so thick that {friend} [lost|loses] sight of {they_his} own feet.
    - Fog [rolled|rolls] over the road like milk, and the road [stopped|stops] being anywhere.
    bridge:
    - Then they [came|come] to a narrow bridge, and on the bridge [stood|stands] a goat who [would|will] not move.
    - "Nobody crosses my bridge," [said|says] a goat with a beard down to the planks.
    gate:
    - Then a gate [rose|rises] in front of them, high and black, with no handle and no keyhole.
    - A gate [barred|bars] the valley, and <nine|twelve|thirty> bolts [barred|bar] the gate.
    bog:
    - Then the ground [turned|turns] to bog, and it [took|takes] {friend} up to the chin.
    - A bog [lay|lies] ahead, green and smiling, the kind that [kept|keeps] what it [was|is] given.
    cliff:
    - Then the road [ran|runs] straight up to the foot of a cliff and [gave|gives] up.
    - A cliff [stood|stands] in the way, as smooth as soap and as high as Sunday.
    bear:
    - Then they [came|come] upon a bear asleep across the pass, snoring like a sawmill.
    - A bear [had|has] gone to sleep in the narrowest part of the road, and its dreams [were|are] not friendly.
    crossroads:
    - Then the road [split|splits] into seven, and someone [had|has] turned all the signs around.
    - At the crossroads every sign [said|says] the same word, and the word [was|is] "no."
    forest:
    - Then they [came|come] to a forest where the trees [moved|move] whenever nobody [was|is] looking.
    - The forest ahead [had|has] only one path, and the path [went|goes] in circles.
    """,
)

_DESPAIR = SCRIPT.lines("""
- {friend} [sat|sits] down. "We could go home," {they_he} [said|says].
- "{saying}," [muttered|mutters] {name}, without much hope.
- They [tried|try] until dark and [got|get] nowhere.
- {name} [held|holds] on to {his} {wear} and [thought|thinks] of {place}.
- "This was not in the plan," [said|says] {friend}.
- {friend} [asked|asks] whether anyone [would|will] miss them in {place} before {season} [was|is] over.
""")

_ASIDE = SCRIPT.cases(
    "tone",
    """
    cosy:
    - Do not worry, though, for help [was|is] near.
    - It [was|is] not as bad as it sounds, because they [had|have] each other.
    comic:
    - This is where most people in {place} stop the story and have soup.
    - {friend} later [claimed|claims] to have enjoyed it.
    grave:
    - Better travellers than these [had|have] turned back there.
    - Nobody [would|will] have blamed them for weeping, and so they [wept|weep].
    wry:
    - It [was|is] the sort of thing that maps leave out.
    - Heroes in books are never this tired.
    """,
)

_SCENE = concat(
    [maybe(0.35, concat([_ROAD, Text(" ")])), paragraph(_BARRED, Maybe(0.25, _DESPAIR), Maybe(0.2, _ASIDE))]
)

OBSTACLE = SCRIPT.when(variable("obstacle"), "none", Text(""), concat([_SCENE, Text("\n\n")]))

_MEETING = SCRIPT.lines("""
- At <dusk|dawn|noon> {a_helper} [came|comes] by.
- Beside the road [sat|sits] {a_helper}, <eating radishes|humming|looking at the sky|doing nothing at all>.
- "You look lost," [called|calls] {a_helper} from <a ditch|a hollow log|behind a milestone|the top of a wall>.
- Behind a <stone|hedge|milestone> {a_helper} [sneezed|sneezes].
- That night {a_helper} [shared|shares] their fire.
""")

_TEST = SCRIPT.cases(
    "virtue",
    """
    patience:
    - "Sit with me until the moon is up, and do not ask why," [said|says] the {helper}. {name} [sat|sits] as still
      as a milestone.
    - The {helper} [told|tells] them a very long story about a very short turnip. {name} [listened|listens] to the
      end, and [asked|asks] to hear the beginning again.
    - The {helper} [had|has] spilled a sack of poppy seed in the grass. {name} [picked|picks] it up until dawn and
      [did|does] not hurry once.
    courage:
    - Something [growled|growls] in the dark. {name} [was|is] shaking, but {he} [stepped|steps] out in front, with
      only {his} {wear} for armour.
    - "My supper rolled into that cave," [said|says] the {helper}, "and something in there is breathing." {name}
      [went|goes] in, whistling loudly, and [came|comes] out with the supper.
    - "Who will cross the graveyard and bring me water?" [asked|asks] the {helper}. {name}'s knees [knocked|knock],
      but {he} [went|goes].
    kindness:
    - The {helper} [was|is] shivering. {name} [asked|asks] no questions, but [built|builds] a fire and [moved|moves]
      over.
    - The {helper} [was|is] weeping and [would|will] not say why. {name} [sat|sits] down alongside and
      [stayed|stays] until it [was|is] over.
    - The {helper} [was|is] very rude to them both. "You sound tired," [said|says] {name}, and [made|makes] up a bed
      of dry leaves.
    honesty:
    - "Are you the famous hero of {place}?" [asked|asks] the {helper}. "No," [said|says] {name}. "I am only
      {a_kind}, and I am lost."
    - A coin [lay|lies] in the road. "Is it yours?" [asked|asks] the {helper}. {friend} [coughed|coughs]. "No,"
      [said|says] {name}, "though I wish it were."
    - "Who stepped on my cabbages?" [asked|asks] the {helper}. It [had|has] been dark, and nobody [had|has] seen. "I
      did," [said|says] {name}.
    humility:
    - "Anyone can see that you are a great captain," [said|says] the {helper}. "No," [said|says] {name}, "but I can
      wash up." And {he} [washed|washes] up.
    - {friend} [explained|explains] how clever they [were|are]. {name} only [asked|asks] the {helper}, "What have we
      got wrong?"
    - The {helper} [offered|offers] them a throne and a stool. {name} [took|takes] the stool and [let|lets] {friend}
      have the throne.
    cleverness:
    - "What grows when you feed it and dies when you give it a drink?" [asked|asks] the {helper}. "A fire,"
      [said|says] {name}, while {friend} [was|is] still guessing cows.
    - "Bring me the wind in a sack," [said|says] the {helper}. {name} [held|holds] out an empty sack. "It is asleep
      in there," {he} [said|says]. "Best not to look."
    - "You may ask me one question," [said|says] the {helper}. {name} [thought|thinks]. "What is the question that I
      should ask?" {he} [said|says].
    generosity:
    - There [was|is] only half of the {food} left. {name} [gave|gives] it to the {helper} and [said|says] that {he}
      [was|is] not hungry, which [was|is] not so.
    - "I have eaten nothing since Tuesday," [said|says] the {helper}. {name} [handed|hands] over the whole {food}
      and [went|goes] to bed hungry.
    - The {helper} [had|has] no blanket. {name} [gave|gives] away {his} own, and then, since the night [was|is]
      cold, {friend}'s as well.
    perseverance:
    - "Carry my woodpile over that hill," [said|says] the {helper}. {name} [dropped|drops] it eleven times and
      [picked|picks] it up twelve.
    - "Guess my name," [said|says] the {helper}. {name} [guessed|guesses] four hundred and six times, and [was|is]
      right once.
    - The {helper}'s cart [was|is] stuck. {name} [pushed|pushes] until noon, and then until evening, and then it
      [moved|moves].
    loyalty:
    - "I can help only one of you," [said|says] the {helper}. "Then neither," [said|says] {name}, and [sat|sits]
      down beside {friend}.
    - "Leave the {friend_kind} behind, and I will tell you a secret," [said|says] the {helper}. "Then keep it,"
      [said|says] {name}.
    - In the night {friend} [fell|falls] ill. {name} [would|will] not go on, and the {helper} [watched|watches]
      {him} keep the fire until dawn.
    curiosity:
    - "Everyone asks me the way," [said|says] the {helper}. {name} [asked|asks] instead what the stars [were|are]
      called, and [wanted|wants] to hear all of them.
    - The {helper} [had|has] a box with a very small window. {friend} [looked|looks] away. {name} [looked|looks] in
      and [said|says], "How does it work?"
    - "What is under that stone?" [asked|asks] {name}. In forty years nobody [had|has] asked the {helper} that.
    """,
)

_PRAISE = SCRIPT.lines("""
- "Good," [said|says] the {helper}.
- "That will do," [said|says] the {helper}.
- The {helper} [smiled|smiles] for the first time.
- "I have waited a long time for that," [said|says] the {helper}.
- The {helper} [nodded|nods] slowly.
- "They make them well in {place}," [said|says] the {helper}.
""")

_HELP = SCRIPT.extended(next=SCRIPT.prose("<So|Then|After that>")).cases(
    "obstacle",
    """
    river:
    - By morning there [was|is] a line of stones across the river, one for each step.
    - {next} the {helper} [showed|shows] them a boat in the rushes, and they [crossed|cross] the river with their
      eyes shut.
    hedge:
    - {next} the {helper} [sang|sings] one low note, and the thorns [leaned|lean] apart like curtains.
    - {next} the {helper} [showed|shows] them a gap in the thorns that only beetles [used|use].
    fog:
    - {next} the {helper} [tied|ties] a thread to {name}'s {wear} and [led|leads] them out of the fog, step by step.
    - "Shut your eyes and listen," [said|says] the {helper}, and so they [walked|walk] through the fog by ear.
    bridge:
    - {next} the {helper} [whispered|whispers] to the goat, and the goat [turned|turns] pink and [let|lets] them
      pass.
    - It [turned|turns] out that the goat [owed|owes] the {helper} a favour, and over the bridge they [went|go].
    gate:
    - {next} the {helper} [pushed|pushes] the gate on the side with the hinges, and it [opened|opens].
    - {next} the {helper} [said|says] "please" to the gate, which nobody [had|has] tried, and it [swung|swings]
      open.
    bog:
    - {next} the {helper} [laid|lays] down reeds in front of them, and they [went|go] over the bog as light as
      flies.
    - {next} the {helper} [led|leads] them over the bog by the herons' path, and they [came|come] out muddy to the
      ears.
    cliff:
    - {next} the {helper} [showed|shows] them a stair behind the ivy, and they [climbed|climb] the cliff before
      breakfast.
    - {next} the {helper} [let|lets] down a rope, and up the cliff they [went|go], not looking.
    bear:
    - {next} the {helper} [tickled|tickles] the bear's left ear, and it [rolled|rolls] over without waking.
    - {next} the {helper} [recited|recites] such a dull poem that the bear [slept|sleeps] deeper, and they
      [climbed|climb] over it.
    crossroads:
    - "The right road is the one that no sign wants," [said|says] the {helper}, and it [was|is].
    - {next} the {helper} [sniffed|sniffs] at all the roads and [chose|chooses] the one that [smelled|smells] of
      rain.
    forest:
    - {next} the {helper} [told|tells] them to walk backwards, and the forest, confused, [let|lets] them through.
    - {next} the {helper} [introduced|introduces] them to the trees by name, and after that the forest
      [stood|stands] still.
    none:
    - {next} the {helper} [told|tells] them the way.
    - {next} the {helper} [drew|draws] them a map in the <dust|mud|sand>.
    - {next} the {helper} [went|goes] with them as far as the last hill.
    """,
)

STRANGER = paragraph(_MEETING, _TEST, Maybe(0.2, _PRAISE), _HELP)
