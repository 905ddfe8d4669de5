"""The synthetic shop's vocabulary: its products, what queries ask for, and the words of both.

Plain data. `shop.py` draws products and queries from it; the rule book (`rules.jsonl`) decides the grades. Brand names
are invented.
"""

from __future__ import annotations


def _rows(table: str) -> list[list[tuple[str, ...]]]:
    """The rows of a text table: a row a line, cells separated by "|", the texts of a cell by ";"."""
    lines = [line.split("|") for line in table.strip().splitlines()]
    return [[tuple(text.strip() for text in cell.split(";")) for cell in cells] for cells in lines]


# --- Products ---------------------------------------------------------------------------------------------------------
# Of each type: synonyms in titles and queries (the first is the canonical name, used in a chain of thought), accessory
# words, base price in dollars, and needs ("question" queries name a need instead of the type). Types stand in pairs:
# neighbours 0-1 and 2-3 share a shelf and are substitutes for each other, any other two types of a group are
# "sibling"s, types of two groups are "different".
_TYPES_OF_GROUP = {
    "footwear": """
    hiking boots; trekking boots | laces; wax      | 60 | climb a rocky trail; walk up a muddy mountain
    running shoes; joggers       | laces; insoles  | 50 | jog every morning; train for a marathon
    sandals; slides              | straps; insoles | 25 | keep my feet cool in summer; walk on hot sand
    slippers; house shoes        | insoles; rack   | 18 | keep my feet warm indoors; walk around the house quietly""",
    "clothing": """
    rain jacket; raincoat        | hanger; patch   | 55 | stay dry in a storm; cycle through heavy rain
    hoodie; sweatshirt           | hanger; patch   | 32 | stay cosy on a chilly evening; cover my head when it is windy
    jeans; denims                | patch; clips    | 40 | dress for a casual friday; wear something tough on my legs
    shorts; bermudas             | clips; hanger   | 22 | keep my legs cool; play tennis in july""",
    "kitchen": """
    frying pan; skillet          | lid; scraper    | 28 | fry eggs; sear a steak
    saucepan; cooking pot        | lid; rack       | 30 | boil pasta; simmer a soup
    travel mug; tumbler          | lid; brush      | 16 | keep coffee hot on the train; drink tea in the car
    water bottle; canteen        | brush; sleeve   | 14 | stay hydrated on a ride; carry water to class""",
    "electronics": """
    headphones; headset          | pouch; cable    | 45 | mix music at my desk; block noise in the office
    earbuds; earphones           | pouch; tips     | 35 | hear podcasts with tiny gear; listen to songs on the move
    power bank; portable charger | cable; pouch    | 26 | charge my phone in the woods; keep my tablet alive on a flight
    wall charger; usb adapter    | cable; sleeve   | 15 | charge my phone at home; plug my tablet into a socket""",
    "outdoor": """
    tent; camping shelter        | pegs; patch     | 90 | sleep in the woods; camp at a festival
    hammock; hanging bed         | straps; hooks   | 35 | nap between two trees; relax in the garden
    backpack; rucksack           | cover; straps   | 48 | carry books on my back; pack for a long trek
    duffel; gym bag              | lock; straps    | 38 | carry sports clothes; pack for one night away""",
    "home": """
    desk lamp; reading light     | bulb; shade     | 27 | light up my notebook; study late at night
    floor lamp; standing light   | bulb; shade     | 52 | brighten a dark corner; light the whole sofa area
    blanket; throw               | bag; clips      | 30 | stay warm on the sofa; cover my knees while watching films
    quilt; comforter             | cover; clips    | 58 | sleep warm in winter; cover a double bed""",
}
TYPES: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...], int]]] = {
    group: {names[0]: (names, accessories, int(price)) for names, accessories, (price,), _ in _rows(table)}
    for group, table in _TYPES_OF_GROUP.items()
}
NEEDS = {names[0]: needs for table in _TYPES_OF_GROUP.values() for names, _, _, needs in _rows(table)}
GROUP_OF = {kind: group for group, types in TYPES.items() for kind in types}

# Group, its two shelves (a shelf holds two types that are substitutes for each other), materials and uses.
_GROUPS = """
footwear    | sport; leisure      | leather; suede; cotton; wool         | travel; gym; work
clothing    | tops; bottoms       | cotton; linen; wool; fleece; leather | travel; gym; work
kitchen     | cookware; drinkware | steel; aluminum; wood; bamboo        | travel; camping; work
electronics | audio; charging     | steel; aluminum; leather             | travel; gym; work
outdoor     | shelter; bags       | cotton; linen; leather               | travel; camping; gym
home        | lighting; bedding   | cotton; linen; wool; fleece; steel   | reading; work; camping
"""
SHELVES = {group: shelves for (group,), shelves, _, _ in _rows(_GROUPS)}
SIZES = ("small", "medium", "large")  # neighbours are near, anything further is missed
FEATURES = {
    "footwear": ("waterproof", "breathable", "lightweight", "insulated"),
    "clothing": ("waterproof", "breathable", "lightweight", "insulated"),
    "kitchen": ("insulated", "leakproof", "foldable", "lightweight"),
    "electronics": ("waterproof", "rechargeable", "foldable", "lightweight"),
    "outdoor": ("waterproof", "foldable", "lightweight", "insulated"),
    "home": ("foldable", "rechargeable", "washable", "lightweight"),
}

BRANDS = {  # by price tier, cheapest tier first
    "budget": ("Bramco", "Dulvy", "Kestro", "Oddly"),
    "value": ("Alder", "Fernby", "Hollin", "Marlo"),
    "premium": ("Belmont", "Galden", "Norvell", "Vantor"),
    "luxury": ("Delacour", "Isolde", "Orsini", "Valmont"),
}
TIERS = tuple(BRANDS)
TIER_OF_BRAND = {brand: tier for tier, brands in BRANDS.items() for brand in brands}
ALL_BRANDS = tuple(TIER_OF_BRAND)
TIER_PRICE_FACTOR = (0.5, 1.0, 2.0, 4.0)

# Similar values share a family: a value of the demanded family is "near", one of another family "missed".
COLOUR_FAMILIES = (("red", "crimson"), ("blue", "navy"), ("green", "olive"), ("black", "charcoal"), ("white", "ivory"))
MATERIAL_FAMILIES = (
    ("leather", "suede"), ("cotton", "linen"), ("wool", "fleece"), ("steel", "aluminum"), ("wood", "bamboo"),
)  # fmt: skip
# The values that a query can demand, by attribute and group. "price" means cheaper than this brand.
VALUES = {
    "brand": dict.fromkeys(TYPES, ALL_BRANDS),
    "price": dict.fromkeys(TYPES, tuple(brand for brand in ALL_BRANDS if TIER_OF_BRAND[brand] != TIERS[0])),
    "colour": dict.fromkeys(TYPES, sum(COLOUR_FAMILIES, ())),
    "material": {group: materials for (group,), _, materials, _ in _rows(_GROUPS)},
    "size": dict.fromkeys(TYPES, ()) | dict.fromkeys(("footwear", "clothing", "outdoor"), SIZES),
    "feature": FEATURES,
    "use": {group: uses for (group,), _, _, uses in _rows(_GROUPS)},
}
FLUFF = ("new", "classic", "pro", "original", "deluxe", "2 pack", "bestseller", "series 2")

# --- Queries ----------------------------------------------------------------------------------------------------------
# Knowledge phrases stand for one demand: (phrases) -> (attribute, value, excluded?).
CONCEPTS: tuple[tuple[tuple[str, ...], tuple[str, str, bool]], ...] = (
    (("for monsoon season", "that survives a downpour", "safe in a puddle"), ("feature", "waterproof", False)),
    (("for arctic weather", "that holds heat for hours", "for subzero days"), ("feature", "insulated", False)),
    (("that fits in a drawer", "that packs flat", "for tiny flats"), ("feature", "foldable", False)),
    (("easy on the shoulders", "that weighs next to nothing", "for counting grams"), ("feature", "lightweight", False)),
    (("for vegans", "without animal skin", "that is cruelty free"), ("material", "leather", True)),
    (("for people itchy from sheep hair", "safe for lanolin allergy", "that never itches"), ("material", "wool", True)),
    (("in the shade of ripe tomatoes", "in fire engine paint", "in stop sign tones"), ("colour", "red", False)),
    (("in the shade of the deep sea", "in sailor uniform tones", "like the midnight sky"), ("colour", "navy", False)),
    (("that will not show coffee stains", "hiding every smudge", "safe near mud"), ("colour", "white", True)),
    (
        ("of the metal cutlery is made of", "of the alloy that never rusts", "from knife metal"),
        ("material", "steel", False),
    ),
)

# Query templates by kind. {t} is the type, {d} a positive demand (may be empty), {x} the excluded value, {b} the brand
# that the item must be cheaper than, {n} a need phrase, {c} a knowledge phrase. The second list is held out: only dev
# and test use it, and even without a demand none of its templates gives the same text as one of the first list.
_TEMPLATES = """
plain      | {t} {d}; {d} {t}; i want {d} {t}; best {t} {d}; looking for {t} {d}; good {d} {t} please \
           | i want {t} {d} please; looking for the best {d} {t}; good {t} {d}
negation   | {d} {t} not {x}; {t} {d} no {x}; {d} {t} without {x}; i want {t} {d} but not {x}; \
             {t} , no {x} please , {d} \
           | {t} {d} but no {x}; i want {d} {t} without {x}; {d} {t} , not {x} please
affordable | {d} {t} cheaper than {b}; cheaper than {b} {t} {d}; {t} {d} like {b} but cheaper; \
             affordable alternative to {b} {d} {t}; {d} {t} less expensive than {b} \
           | {t} {d} alternative to {b} but cheaper; less expensive than {b} {t} {d}; affordable {d} {t} like {b}
question   | what do i need to {n} {d}; what should i buy to {n} {d}; something {d} to {n}; \
             which {d} thing helps me {n}; what helps to {n} {d} \
           | what {d} thing do i need to {n}; which thing should i buy to {n} {d}; something {d} that helps to {n}
knowledge  | {d} {t} {c}; {t} {c} {d}; i want {d} {t} {c}; best {t} {d} {c}; looking for {t} {c} {d} \
           | i want the best {t} {c} {d}; {t} {d} {c} please; looking for good {d} {t} {c}
"""
TEMPLATES = {kind: (training, held_out) for (kind,), training, held_out in _rows(_TEMPLATES)}
# A positive demand in the words of a query, by attribute.
DEMAND_PHRASES = {
    "brand": ("{v}", "by {v}"), "colour": ("{v}", "in {v}"), "material": ("{v}", "made of {v}"),
    "size": ("size {v}",), "feature": ("{v}",), "use": ("for {v}",),
}  # fmt: skip
EXCLUDABLE = ("brand", "colour", "material", "feature")  # attributes that a query may exclude a value of
