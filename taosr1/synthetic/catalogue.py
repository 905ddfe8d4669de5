"""The synthetic shop's vocabulary: its products, what queries ask for, and the words of both.

Plain data, no code. `shop.py` draws products and queries from it; the rule book (`rules.jsonl`) decides the grades.
Brand names are invented.
"""

from __future__ import annotations

# --- Products ---------------------------------------------------------------------------------------------------------
# group -> type -> (synonyms in titles and queries, accessory words, base price in dollars). The first synonym is the
# canonical name used in a chain of thought. Types stand in pairs: neighbours 0-1 and 2-3 share a shelf and are
# substitutes for each other, any other two types of a group are "sibling"s, types of two groups are "different".
TYPES: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...], int]]] = {
    "footwear": {
        "hiking boots": (("hiking boots", "trekking boots"), ("laces", "wax"), 60),
        "running shoes": (("running shoes", "joggers"), ("laces", "insoles"), 50),
        "sandals": (("sandals", "slides"), ("straps", "insoles"), 25),
        "slippers": (("slippers", "house shoes"), ("insoles", "rack"), 18),
    },
    "clothing": {
        "rain jacket": (("rain jacket", "raincoat"), ("hanger", "patch"), 55),
        "hoodie": (("hoodie", "sweatshirt"), ("hanger", "patch"), 32),
        "jeans": (("jeans", "denims"), ("patch", "clips"), 40),
        "shorts": (("shorts", "bermudas"), ("clips", "hanger"), 22),
    },
    "kitchen": {
        "frying pan": (("frying pan", "skillet"), ("lid", "scraper"), 28),
        "saucepan": (("saucepan", "cooking pot"), ("lid", "rack"), 30),
        "travel mug": (("travel mug", "tumbler"), ("lid", "brush"), 16),
        "water bottle": (("water bottle", "canteen"), ("brush", "sleeve"), 14),
    },
    "electronics": {
        "headphones": (("headphones", "headset"), ("pouch", "cable"), 45),
        "earbuds": (("earbuds", "earphones"), ("pouch", "tips"), 35),
        "power bank": (("power bank", "portable charger"), ("cable", "pouch"), 26),
        "wall charger": (("wall charger", "usb adapter"), ("cable", "sleeve"), 15),
    },
    "outdoor": {
        "tent": (("tent", "camping shelter"), ("pegs", "patch"), 90),
        "hammock": (("hammock", "hanging bed"), ("straps", "hooks"), 35),
        "backpack": (("backpack", "rucksack"), ("cover", "straps"), 48),
        "duffel": (("duffel", "gym bag"), ("lock", "straps"), 38),
    },
    "home": {
        "desk lamp": (("desk lamp", "reading light"), ("bulb", "shade"), 27),
        "floor lamp": (("floor lamp", "standing light"), ("bulb", "shade"), 52),
        "blanket": (("blanket", "throw"), ("bag", "clips"), 30),
        "quilt": (("quilt", "comforter"), ("cover", "clips"), 58),
    },
}

# The two shelves of each group; a shelf holds two types that are substitutes for each other.
SHELVES: dict[str, tuple[str, str]] = {
    "footwear": ("sport", "leisure"),
    "clothing": ("tops", "bottoms"),
    "kitchen": ("cookware", "drinkware"),
    "electronics": ("audio", "charging"),
    "outdoor": ("shelter", "bags"),
    "home": ("lighting", "bedding"),
}

# Brands by price tier, cheapest tier first.
TIERS = ("budget", "value", "premium", "luxury")
BRANDS: dict[str, tuple[str, ...]] = {
    "budget": ("Bramco", "Dulvy", "Kestro", "Oddly"),
    "value": ("Alder", "Fernby", "Hollin", "Marlo"),
    "premium": ("Belmont", "Galden", "Norvell", "Vantor"),
    "luxury": ("Delacour", "Isolde", "Orsini", "Valmont"),
}
TIER_PRICE_FACTOR = (0.5, 1.0, 2.0, 4.0)

# Similar values share a family: a value of the demanded family is "near", one of another family "missed".
COLOUR_FAMILIES = (("red", "crimson"), ("blue", "navy"), ("green", "olive"), ("black", "charcoal"), ("white", "ivory"))
MATERIAL_FAMILIES = (
    ("leather", "suede"), ("cotton", "linen"), ("wool", "fleece"), ("steel", "aluminum"), ("wood", "bamboo"),
)  # fmt: skip
MATERIALS: dict[str, tuple[str, ...]] = {
    "footwear": ("leather", "suede", "cotton", "wool"),
    "clothing": ("cotton", "linen", "wool", "fleece", "leather"),
    "kitchen": ("steel", "aluminum", "wood", "bamboo"),
    "electronics": ("steel", "aluminum", "leather"),
    "outdoor": ("cotton", "linen", "leather"),
    "home": ("cotton", "linen", "wool", "fleece", "steel"),
}
# Sizes in order: neighbours are near, anything further is missed.
SIZES: dict[str, tuple[str, ...]] = {
    "footwear": ("small", "medium", "large"),
    "clothing": ("small", "medium", "large"),
    "outdoor": ("small", "medium", "large"),
}
FEATURES: dict[str, tuple[str, ...]] = {
    "footwear": ("waterproof", "breathable", "lightweight", "insulated"),
    "clothing": ("waterproof", "breathable", "lightweight", "insulated"),
    "kitchen": ("insulated", "leakproof", "foldable", "lightweight"),
    "electronics": ("waterproof", "rechargeable", "foldable", "lightweight"),
    "outdoor": ("waterproof", "foldable", "lightweight", "insulated"),
    "home": ("foldable", "rechargeable", "washable", "lightweight"),
}
USES: dict[str, tuple[str, ...]] = {
    "footwear": ("travel", "gym", "work"),
    "clothing": ("travel", "gym", "work"),
    "kitchen": ("travel", "camping", "work"),
    "electronics": ("travel", "gym", "work"),
    "outdoor": ("travel", "camping", "gym"),
    "home": ("reading", "work", "camping"),
}
VALUES = {"material": MATERIALS, "size": SIZES, "feature": FEATURES, "use": USES}
FLUFF = ("new", "classic", "pro", "original", "deluxe", "2 pack", "bestseller", "series 2")

# --- Queries ----------------------------------------------------------------------------------------------------------
# Need phrases name a type without saying it ("question" queries).
NEEDS: dict[str, tuple[str, ...]] = {
    "hiking boots": ("climb a rocky trail", "walk up a muddy mountain"),
    "running shoes": ("jog every morning", "train for a marathon"),
    "sandals": ("keep my feet cool in summer", "walk on hot sand"),
    "slippers": ("keep my feet warm indoors", "walk around the house quietly"),
    "rain jacket": ("stay dry in a storm", "cycle through heavy rain"),
    "hoodie": ("stay cosy on a chilly evening", "cover my head when it is windy"),
    "jeans": ("dress for a casual friday", "wear something tough on my legs"),
    "shorts": ("keep my legs cool", "play tennis in july"),
    "frying pan": ("fry eggs", "sear a steak"),
    "saucepan": ("boil pasta", "simmer a soup"),
    "travel mug": ("keep coffee hot on the train", "drink tea in the car"),
    "water bottle": ("stay hydrated on a ride", "carry water to class"),
    "headphones": ("mix music at my desk", "block noise in the office"),
    "earbuds": ("hear podcasts with tiny gear", "listen to songs on the move"),
    "power bank": ("charge my phone in the woods", "keep my tablet alive on a flight"),
    "wall charger": ("charge my phone at home", "plug my tablet into a socket"),
    "tent": ("sleep in the woods", "camp at a festival"),
    "hammock": ("nap between two trees", "relax in the garden"),
    "backpack": ("carry books on my back", "pack for a long trek"),
    "duffel": ("carry sports clothes", "pack for one night away"),
    "desk lamp": ("light up my notebook", "study late at night"),
    "floor lamp": ("brighten a dark corner", "light the whole sofa area"),
    "blanket": ("stay warm on the sofa", "cover my knees while watching films"),
    "quilt": ("sleep warm in winter", "cover a double bed"),
}
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
    (("of the metal cutlery is made of", "of the alloy that never rusts", "from knife metal"),
     ("material", "steel", False)),
)

# Query templates by kind. {t} is the type, {d} a positive demand (may be empty), {x} the excluded value, {b} the brand
# that the item must be cheaper than, {n} a need phrase, {c} a knowledge phrase. The second list is held out: only dev
# and test use it, and even without a demand none of its templates gives the same text as one of the first list.
TEMPLATES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": (
        ("{t} {d}", "{d} {t}", "i want {d} {t}", "best {t} {d}", "looking for {t} {d}", "good {d} {t} please"),
        ("i want {t} {d} please", "looking for the best {d} {t}", "good {t} {d}"),
    ),
    "negation": (
        ("{d} {t} not {x}", "{t} {d} no {x}", "{d} {t} without {x}", "i want {t} {d} but not {x}",
         "{t} , no {x} please , {d}"),
        ("{t} {d} but no {x}", "i want {d} {t} without {x}", "{d} {t} , not {x} please"),
    ),
    "affordable": (
        ("{d} {t} cheaper than {b}", "cheaper than {b} {t} {d}", "{t} {d} like {b} but cheaper",
         "affordable alternative to {b} {d} {t}", "{d} {t} less expensive than {b}"),
        ("{t} {d} alternative to {b} but cheaper", "less expensive than {b} {t} {d}", "affordable {d} {t} like {b}"),
    ),
    "question": (
        ("what do i need to {n} {d}", "what should i buy to {n} {d}", "something {d} to {n}",
         "which {d} thing helps me {n}", "what helps to {n} {d}"),
        ("what {d} thing do i need to {n}", "which thing should i buy to {n} {d}", "something {d} that helps to {n}"),
    ),
    "knowledge": (
        ("{d} {t} {c}", "{t} {c} {d}", "i want {d} {t} {c}", "best {t} {d} {c}", "looking for {t} {c} {d}"),
        ("i want the best {t} {c} {d}", "{t} {d} {c} please", "looking for good {d} {t} {c}"),
    ),
}
# A positive demand in the words of a query, by attribute.
DEMAND_PHRASES: dict[str, tuple[str, ...]] = {
    "brand": ("{v}", "by {v}"),
    "colour": ("{v}", "in {v}"),
    "material": ("{v}", "made of {v}"),
    "size": ("size {v}",),
    "feature": ("{v}",),
    "use": ("for {v}",),
}
# An excluded value in the words of a query, by attribute.
EXCLUSION_PHRASES: dict[str, str] = {"brand": "{v}", "colour": "{v}", "material": "{v}", "feature": "{v}"}
