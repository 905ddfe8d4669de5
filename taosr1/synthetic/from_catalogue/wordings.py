"""How queries are worded: templates by language and kind, and what stands for a demand in them.

{t} is the thing, {d} its demands (perhaps none), {x} what is excluded, {n} a price, {b} a brand, {c} a description that
has to be understood. The second list of each kind is for the pools dev and test alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

KINDS = ("plain", "negation", "affordable", "question", "knowledge")
PRICE_FORMS = ("limit", "low", "brand")  # {n}; neither; {b}

_TEXT = {
    "en": """
plain: {d} {t}; {t} {d}; best {d} {t}; i want {t} {d}; looking for {d} {t} | good {t} {d} please; i need {d} {t}
negation: {d} {t} not {x}; {d} {t} without {x}; {t} {d} no {x}; {t} {d} but not {x} | i want {d} {t} , no {x}
limit: {d} {t} under {n}; {t} {d} below {n}; {t} up to {n} {d} | {t} {d} for less than {n}; {d} {t} max {n}
low: cheap {d} {t}; affordable {t} {d}; {d} {t} cheap | inexpensive {d} {t}; budget {t} {d}
brand: {d} {t} cheaper than {b}; cheaper alternative to {b} {t} {d} | {t} {d} like {b} but cheaper
question: which {t} should i buy {d}; what is a good {t} {d}; do you have a {d} {t} | where can i find a {d} {t}
knowledge: {d} {t} {c}; {t} {c} {d}; looking for {t} {c} {d} | i need a {d} {t} {c}; good {t} {c} {d}
""",
    "de": """
plain: {d} {t}; {t} {d}; suche {t} {d}; beste {t} {d} | ich brauche {t} {d}; gute {t} {d}
negation: {d} {t} ohne {x}; {t} {d} nicht {x} | {t} {d} aber nicht {x}; suche {t} {d} , kein {x}
limit: {d} {t} unter {n} euro; {t} {d} bis {n} euro | {t} {d} für weniger als {n} euro
low: günstige {t} {d}; {t} {d} billig | preiswerte {t} {d}
brand: {t} {d} günstiger als {b} | {t} {d} wie {b} nur billiger
question: welche {t} {d} ist gut; wo finde ich {t} {d} | gibt es {t} {d}
knowledge: {t} {d} {c}; suche {t} {c} {d} | ich brauche {t} {c} {d}
""",
    "fr": """
plain: {t} {d}; {d} {t}; meilleur {t} {d} | je cherche {t} {d}; bon {t} {d}
negation: {t} {d} sans {x}; {t} {d} pas {x} | je cherche {t} {d} mais pas {x}
limit: {t} {d} moins de {n} euros; {t} {d} à moins de {n} euros | {t} {d} jusque {n} euros
low: {t} {d} pas cher; {t} économique {d} | {t} {d} à petit prix
brand: {t} {d} moins cher que {b} | {t} {d} comme {b} en moins cher
question: quel {t} {d} choisir; où trouver {t} {d} | avez vous {t} {d}
knowledge: {t} {d} {c}; cherche {t} {c} {d} | je voudrais {t} {c} {d}
""",
    "es": """
plain: {t} {d}; {d} {t}; mejor {t} {d} | busco {t} {d}; buen {t} {d}
negation: {t} {d} sin {x}; {t} {d} no {x} | busco {t} {d} pero no {x}
limit: {t} {d} menos de {n} euros; {t} {d} por menos de {n} euros | {t} {d} hasta {n} euros
low: {t} {d} barato; {t} económico {d} | {t} {d} a buen precio
brand: {t} {d} más barato que {b} | {t} {d} como {b} pero más barato
question: qué {t} {d} comprar; dónde encuentro {t} {d} | tienen {t} {d}
knowledge: {t} {d} {c}; busco {t} {c} {d} | quiero {t} {c} {d}
""",
}
TEMPLATES = {
    language: {
        kind: tuple(tuple(text.strip() for text in part.split(";")) for part in texts.split("|"))
        for kind, _, texts in (line.partition(":") for line in table.strip().splitlines())
    }
    for language, table in _TEXT.items()
}
# What stands before a demand: for the brand, a feature that a product has, a use.
BEFORE = {
    "en": {
        "brand": ("", "by "),
        "colour": ("", "in "),
        "material": ("", "made of "),
        "yes or no": ("with ",),
        "use": ("for ",),
    },
    "de": {
        "brand": ("", "von "),
        "colour": ("", "in "),
        "material": ("", "aus "),
        "yes or no": ("mit ",),
        "use": ("für ",),
    },
    "fr": {
        "brand": ("", "de "),
        "colour": ("", "en "),
        "material": ("en ",),
        "yes or no": ("avec ",),
        "use": ("pour ",),
    },
    "es": {
        "brand": ("", "de "),
        "colour": ("", "en "),
        "material": ("de ",),
        "yes or no": ("con ",),
        "use": ("para ",),
    },
}
# English alone: the names of colours and features, described.
CONCEPTS = {
    "black": ("in the colour of coal", "dark as the night"), "white": ("in the colour of snow", "like fresh milk"),
    "red": ("in the colour of ripe tomatoes", "in fire engine paint"), "green": ("in the colour of grass",),
    "blue": ("in the colour of the sea", "like a clear sky"), "yellow": ("in the colour of lemons",),
    "orange": ("in the colour of carrots",), "brown": ("in the colour of chocolate",),
    "grey": ("in the colour of ash",),
    "pink": ("in the colour of a flamingo",), "gold": ("that looks like a wedding ring",),
    "purple": ("in the colour of plums",), "transparent": ("that one can see through",),
    "wireless": ("without any cord to the device",), "rechargeable": ("that never needs new batteries",),
    "touchscreen": ("that reacts to a finger on the display",), "foldable": ("that packs flat",),
    "waterproof": ("that survives a swim",), "washable": ("that can go into the laundry",),
    "dimmable": ("whose light can be turned down",), "wall mountable": ("that hangs on the wall",),
    "leather": ("made of animal hide",), "wood": ("made of trees",), "glass": ("made of what windows are made of",),
    "duplex printing": ("that prints on both sides by itself",), "backlight": ("that can be read in the dark",),
}  # fmt: skip
# Of each unit: others that say the same, and how much of them one is.
OTHER_UNITS = {"inch": (("cm", 2.54),), "cm": (("inch", 1 / 2.54),), "m": (("ft", 3.2808), ("cm", 100.0)),
               "gb": (("mb", 1000.0),), "tb": (("gb", 1000.0),), "g": (("kg", 0.001),),
               "kg": (("g", 1000.0), ("lb", 2.2046)), "ml": (("l", 0.001),), "l": (("ml", 1000.0),),
               "mm": (("cm", 0.1),), "ghz": (("mhz", 1000.0),)}  # fmt: skip
UNIT_SPELLINGS = {"inch": ("{} inch", '{}"'), "gb": ("{} gb", "{}gb"), "m": ("{} m", "{}m"), "ft": ("{} ft", "{} foot")}
_FUNCTION_WORDS = {
    "en": frozenset("the and for with of is your this from".split()),
    "de": frozenset("der die das und für mit ist ein eine aus".split()),
    "fr": frozenset("le la les et pour avec est une des du".split()),
    "es": frozenset("el los las y para con es una del por".split()),
}


def language_of(texts: Iterable[str]) -> str:
    """The language whose function words are the commonest in some texts; English where there are none."""
    counts: Counter[str] = Counter({"en": 1})
    for text in texts:
        words = text.casefold().split()
        for language, known in _FUNCTION_WORDS.items():
            counts[language] += sum(word in known for word in words)
    return max(counts, key=lambda language: (counts[language], language == "en"))
