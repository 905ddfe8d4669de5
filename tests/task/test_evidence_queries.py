"""What the evidence teacher reads in a query: the thing, and every demand; awkward queries one by one."""

import pytest

from taosr1.task.evidence import Vocabulary
from taosr1.task.evidence.demands import read_query
from taosr1.task.judgement import Judgement

PRODUCTS = [
    Judgement("q", "Nike Air running shoes", "Nike", category="shoes"),
    Judgement("q", "Contigo travel mug", "Contigo"),
    Judgement("q", "Toothpaste with sweetener, mint", "Oral"),
    Judgement("q", "Lumbar pillow", "Softy"),
    Judgement("q", "Guitar strap", "Guitar"),
    *(Judgement("q", f"Acoustic guitar number {number}", "Fender") for number in range(5)),
]
WORDS = Vocabulary.of(PRODUCTS)


def read(query: str, brand: str = "") -> tuple[str, list[str]]:
    wanted = read_query(query, WORDS, brand)
    return " ".join(wanted.thing), [demand.shown for demand in wanted.demands]


@pytest.mark.parametrize(
    ("query", "thing", "demands"),
    [
        # Names and compounds with a negation in them exclude nothing.
        ("listen without prejudice shirt", "listen without prejudice shirt", []),
        ("watch the game not your phone tshirt", "watch game not phone t shirt", []),
        ("no show socks", "sock", ["feature no show"]),
        ("no slip rug pad", "no slip rug pad", []),
        ("nothing phone 2a", "nothing phone", ["feature phone 2 a"]),
        ("non stick pan", "pan", ["feature non stick"]),
        ("chanel no 5", "chanel", ["feature no 5"]),
        ("hands free headset", "hand free headset", []),
        ("sin city dvd", "sin city dvd", []),
        # Exclusions, and what they reach.
        ("shirts without collars", "shirt", ["feature not collar"]),
        ("iphone 12 case not for pro", "iphone case", ["feature iphone 12", "feature not pro"]),
        ("nike shoes men without laces", "shoe", ["brand nike", "use men", "feature not lace"]),
        ("chocolate without sugar or milk", "chocolate", ["feature not sugar", "feature not milk"]),
        ("lamp without cord for bedroom", "lamp", ["feature not cord", "use bedroom"]),
        ("drain without overflow solid brass", "drain", ["feature not overflow", "material brass"]),
        ("real leather belt not brown", "belt", ["material leather", "colour not brown"]),
        ("running shoes not nike", "running shoe", ["brand not nike"]),
        ("gluten free bread", "bread", ["feature not gluten"]),
        ("sugar-free candy", "candy", ["feature not sugar"]),
        ("T-Shirt w/o print", "t shirt", ["feature not print"]),
        # Numbers, units, prices.
        ("4k tv under $300", "tv", ["size 4 k", "price at most 300"]),
        ("headphones under 50 dollars for running", "headphone", ["price at most 50", "use running"]),
        ("toys under 5 years", "toy", ["size 5 year"]),
        ("cheap red travel mug", "travel mug", ["price low", "colour red"]),
        ("travel mug cheaper than contigo", "travel mug", ["price below contigo"]),
        ("size 10.5 wide", "anything", ["size 10.5", "size wide"]),
        ("2x4 lumber", "lumber", ["size 2 by 4"]),
        ('15.6" laptop', "laptop", ["size 15.6 inch"]),
        ("water bottle 1,5 l", "water bottle", ["size 1.5 l"]),
        ("5 in 1 tool", "tool", ["feature 5 in 1"]),
        ("usb c to usb a", "anything", ["feature usb c", "feature usb a"]),
        ("USB-C to USB-A cable 2m", "cable", ["feature usb c", "feature usb a", "size 2 m"]),
        # Words of the tables that are things, or parts of names.
        ("hand cream for women", "hand cream", ["use women"]),
        ("cream sweater", "sweater", ["colour cream"]),
        ("dress in olive", "dress", ["colour olive"]),
        ("olive oil", "olive oil", []),
        ("wine glasses", "wine glass", []),
        ("curling iron", "curling iron", []),
        ("glass teapot", "teapot", ["material glass"]),
        ("cat 6 cable", "cat cable", ["feature cat 6"]),
        ("cat litter box", "litter box", ["use cat"]),
        ("iron man costume", "iron man costume", []),
        ("full face mask", "full face mask", []),
        ("queen sheets", "sheet", ["size queen"]),
        ("iphone 8 plus case", "iphone plus case", ["feature iphone 8"]),
        ("tank top plus women", "tank top", ["size plus", "use women"]),
        # Plurals, typos, brands that are things, other languages and scripts, and nothing at all.
        ("women's boots", "boot", ["use women"]),
        ("ladies dresses", "dress", ["use lady"]),
        ("toothpaste without sweetner", "toothpaste", ["feature not sweetener"]),
        ("guitar", "guitar", []),
        ("schuhe ohne absatz schwarz", "schuhe", ["feature not absatz", "colour schwarz"]),
        ("vestido sin mangas", "vestido", ["feature not manga"]),
        ("赤い マグカップ 電池なし", "赤い マグカップ", ["feature not 電池"]),
        ("наушники без микрофона", "наушники", ["feature not микрофона"]),
        ("made of brass", "anything", ["material brass"]),
        ("!!!", "anything", []),
        ("without", "anything", []),
    ],
)
def test_a_query_is_read_as_its_thing_and_its_demands(query, thing, demands):
    assert read(query) == (thing, demands)


def test_a_brand_that_only_the_product_of_the_row_has_is_known_for_that_row():
    assert read("zorba mug", brand="Zorba") == ("mug", ["brand zorba"])
    assert read("zorba mug") == ("zorba mug", [])


def test_a_letter_too_few_is_a_typo_but_another_letter_is_another_word():
    assert WORDS.spelled("sweetner") == "sweetener" and WORDS.spelled("toothpaste") == "toothpaste"
    assert WORDS.spelled("lumber") == "lumber"
    assert Vocabulary().spelled("sweetner") == "sweetner"


def test_the_reading_never_fails_on_a_text_of_any_sort():
    for query in ("", " ", "no no no no", "not , without", "for", "under", "$", "1/0", "9" * 400, "x" * 5000,
                  "\u202e", "usb", "usb type", "size", "cheaper than", "free", "1 2 3 4", ";:;:",
                  "a\nb", "100%", "無し"):  # fmt: skip
        wanted = read_query(query, WORDS)
        assert wanted.thing and all(demand.words for demand in wanted.demands)
