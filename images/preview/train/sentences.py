"""Generate plain English sentences without end, so that the weights contain no text of another author."""

import random
from collections.abc import Iterator

_PEOPLE = """the baker, my aunt, a young pilot, the judge, our neighbour, the quiet nurse, a tired driver, the boy,
the girl next door, her uncle, the mayor, a fisherman, the painter, your teacher, the old watchmaker, a clever thief,
the choir, his daughter, the village doctor, a farmer, the tall stranger, the whole family, a shy gardener, the
captain, the cook, both of my brothers, the youngest player, a famous author, the bus driver, five judges, the
shepherd, the piano tuner"""
_ACTS = """found, painted, carried, measured, wanted, described, pushed, borrowed, washed, opened, repaired, noticed,
buried, sold, followed, photographed, covered, enjoyed, moved, chose, weighed, boiled, guarded, shook, wrapped,
forgot, owned, polished, imagined, hid, threw away, brought back, looked after, searched for, gave up, put down,
thought about, waved at"""
_THINGS = """the blue boat, a heavy box of apples, the broken window, two small puppies, a pair of woollen gloves, the
moon, the garage door, an azure vase, a bowl of thick soup, the village map, a bag of brown sugar, the loud machine,
five maps, the old oak table, a bunch of violets, the television, a warm loaf of bread, every book on the shelf, a cup
of jasmine tea, a bottle of olive oil, the rusty key, the yellow jersey, a thousand pebbles, a fresh fish, the wooden
wheel, a silver coin, the mouse, an enormous umbrella, a photograph of the valley, the wrong envelope, three cheap
watches, the north wall"""
_WAYS = """very slowly, with great pleasure, before breakfast, in the pouring rain, after the long voyage, without a
word, by mistake, on Thursday evening, near the river, behind the church, for the first time, as usual, under the
bridge, at noon, by the fire, in the middle of March, though nobody asked, while the band was playing, because the
bell rang, until it was dark, just before the storm, with both hands, beyond the hill, above the noisy street, during
the match, all through the winter"""
_OPENINGS = """yesterday, every morning, of course, believe me, some years ago, in other words, once again, as far as
I know, to be fair, on the way home, oddly enough, in my opinion, last summer, whenever it snows, for a moment, by the
way"""
_CLAIMS = """it was a beautiful view, nobody could hear the music, we should leave before five, the weather will
improve, there is no milk in the house, they have to pay the full price, this is what I would like to show you, the
answer was rather simple, I never saw it again, you may keep the change, everything else is finished, the road is wide
and smooth, we both love the beach, the top shelf is empty, her voice was calm and deep, he always wears a hat, my
foot hurts, the shop opens at half past eight"""
_QUESTIONS = """who stole, why would anyone buy, where did they put, how much was, do you remember, have you ever
seen, could we move, what happened to, would you please bring, when will they finish, is it true about, which of you
broke, should I wash"""


def sentences(dice: random.Random) -> Iterator[str]:
    """Yield different sentences without end, 4 to 20 words each."""
    seen: set[str] = set()
    while True:
        sentence = _sentence(dice)
        if sentence not in seen:
            seen.add(sentence)
            yield sentence


def _sentence(dice: random.Random) -> str:
    def one(choices: str) -> str:
        return dice.choice(choices.replace("\n", " ").split(", "))

    deed = f"{one(_PEOPLE)} {one(_ACTS)} {one(_THINGS)}"
    shapes = (
        f"{deed} {one(_WAYS)}.",
        f"{one(_OPENINGS)}, {deed}.",
        f"{one(_OPENINGS)}, {one(_CLAIMS)}.",
        f"{deed}, and {one(_CLAIMS)}.",
        f"{deed}, but {one(_PEOPLE)} {one(_ACTS)} {one(_THINGS)} {one(_WAYS)}.",
        f"{one(_QUESTIONS)} {one(_THINGS)}?",
        f"{one(_CLAIMS)}, {one(_WAYS)}.",
    )
    return dice.choice(shapes)
