"""The words that the evidence teacher knows: colours, materials, units, negations, names that are no negations.

Plain data, in lower case and in the singular. English first; the commonest words of German, French, Spanish, Italian
and Dutch beside it. A word that is missing here is no demand of its own: it stays in what the query calls the thing.
"""

from __future__ import annotations


def _table(text: str) -> dict[str, tuple[str, ...]]:
    """Rows "name: word; two words" as {name: (words)}."""
    rows = (line.partition(":") for line in text.strip().splitlines())
    return {name.strip(): tuple(word.strip() for word in words.split(";")) for name, _, words in rows}


def _by_word(table: dict[str, tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Every phrase of a table, as its words, with the name of its row."""
    return {tuple(phrase.split()): name for name, phrases in table.items() for phrase in (name, *phrases)}


# --- Colours and materials: of each name, the words that mean it; then the families whose members are near ------------
COLOURS = _by_word(
    _table("""
black: schwarz; noir; noire; negro; nero; zwart
white: weiß; weiss; blanc; blanche; blanco; bianco; wit
grey: gray; grau; gris; grigio; grijs
charcoal: anthracite; anthrazit
silver: silber; argent; plata
red: rot; rouge; rojo; rosso; rood
crimson: scarlet
burgundy: maroon; bordeaux; wine red
pink: rosa; rose
magenta: fuchsia
orange: naranja
yellow: gelb; jaune; amarillo; giallo; geel
gold: golden; dorado
green: grün; vert; verte; verde; groen
olive: khaki; army green
mint: sage
blue: blau; bleu; bleue; azul; blu; blauw
navy: navy blue; dark blue; dunkelblau
teal: turquoise; aqua; cyan
purple: violet; lila; violett; lavender
brown: braun; marron; marrón; bruin
tan: camel; cognac
beige: cream; ivory; off white
multicolour: multicolor; multi color; multi colour; rainbow; bunt
transparent: clear; see through
""")
)
COLOUR_FAMILIES = (
    ("black", "charcoal"), ("grey", "charcoal", "silver"), ("red", "crimson", "burgundy"), ("pink", "magenta"),
    ("yellow", "gold"), ("green", "olive", "mint"), ("blue", "navy", "teal"), ("brown", "tan"), ("white", "beige"),
    ("tan", "beige"), ("purple", "magenta"),
)  # fmt: skip
MATERIALS = _by_word(
    _table("""
leather: leder; cuir; cuero; pelle
suede: nubuck; wildleder
cotton: baumwolle; coton; algodon; algodón; cotone; katoen
linen: leinen; lin
wool: merino; wolle; laine; lana; wol
fleece: cashmere; alpaca
polyester: microfiber; microfibre; mikrofaser
nylon: polyamide
spandex: elastane; lycra
silk: seide; soie; seda
denim: jean fabric
steel: stainless steel; stain steel; edelstahl; stahl; acier; acero
aluminum: aluminium; alu
iron: cast iron; gusseisen
brass: messing; laiton
copper: kupfer; cuivre; cobre
wood: wooden; wood; holz; bois; madera; legno; oak; walnut; teak
bamboo: bambus
glass: glas; verre; vidrio
ceramic: porcelain; stoneware; keramik
plastic: pvc; acrylic; kunststoff; plastique; plastico; plástico
silicone: silikon; silicona
rubber: gummi; caoutchouc
paper: papier; papel; cardboard
""")
)
MATERIAL_FAMILIES = (
    ("leather", "suede"), ("cotton", "linen"), ("wool", "fleece"), ("polyester", "nylon", "spandex"),
    ("wood", "bamboo"), ("steel", "aluminum", "iron", "copper", "brass"), ("glass", "ceramic"), ("plastic", "silicone"),
)  # fmt: skip
IMITATIONS = frozenset("faux vegan imitation fake artificial pu synthetic kunst simili look".split())
ORIGINS = frozenset("solid real genuine pure full grain".split())  # before a material: they belong to it

# --- Who it is for: the words of each, and those that exclude it ------------------------------------------------------
AUDIENCES = _by_word(
    _table("""
women: woman; lady; female; damen; frauen; femme; mujer; donna
men: man; gentleman; male; herren; männer; homme; hombre; uomo
girl: mädchen; fille; niña
boy: junge; garçon; niño
kid: child; children; kinder; enfant; niños
toddler: kleinkind
baby: infant; newborn; bebe; bébé
adult: grown up; erwachsene
dog: puppy; hund; chien; perro
cat: kitten; katze; chat; gato
""")
)
OTHER_AUDIENCES = {"women": ("men", "boy"), "men": ("women", "girl"), "girl": ("boy",), "boy": ("girl",),
                   "dog": ("cat",), "cat": ("dog",)}  # fmt: skip

# --- Features that a query names beside the thing ---------------------------------------------------------------------
FEATURES = tuple(
    tuple(phrase.split())
    for phrase in (
        "waterproof; water resistant; wireless; bluetooth; cordless; rechargeable; foldable; folding; adjustable; "
        "portable; organic; vegan; stretch; slim fit; high waisted; high waist; long sleeve; short sleeve; sleeveless; "
        "non stick; nonstick; noise cancelling; noise canceling; heavy duty; dimmable; insulated; breathable; "
        "lightweight; washable; dishwasher safe; hypoallergenic; scented; unscented; decaf; touch screen; touchscreen; "
        "mechanical; magnetic; inflatable; reusable; disposable; slip on; no show; non slip; anti slip; wasserdicht; "
        "kabellos; faltbar; sans fil; inalámbrico; gaming; refurbished; fast charging; solar; electric; manual; "
        "made in usa; 3 d; 5 g; 4 g"
    ).split("; ")
)
SAME_FEATURE = {("wireless",): (("bluetooth",), ("cordless",), ("wi", "fi")), ("cordless",): (("wireless",),),
                ("foldable",): (("folding",), ("collapsible",)), ("folding",): (("foldable",),),
                ("nonstick",): (("non", "stick"),), ("non", "stick"): (("nonstick",),),
                ("noise", "canceling"): (("noise", "cancelling"),),
                ("noise", "cancelling"): (("noise", "canceling"),)}  # fmt: skip
NEAR_FEATURE = {("waterproof",): (("water", "resistant"), ("water", "repellent"))}

# Words of these tables that are things behind another word, at the end of a phrase: "hand cream", "wine glass".
THINGS_TOO = frozenset(
    "cream mint sage rose olive orange lavender gold silver glass iron paper linen wood rubber".split()
)
NO_DEMANDS = frozenset(
    tuple(phrase.split())
    for phrase in (
        "olive oil; orange juice; rose water; mint tea; lavender oil; gold fish; iron man; spider man; "
        "super man; bat man; game boy; glass bead; paper towel; toilet paper; silver fish; black berry; red bull"
    ).split("; ")
)

# --- Sizes ------------------------------------------------------------------------------------------------------------
SIZE_STEPS = ("xs", "s", "m", "l", "xl", "xxl", "xxxl")  # of clothes: the next step is near
SIZES = _by_word(
    _table("""
xs: extra small; x small
s: small; klein; petit; pequeño
m: medium; mittel
l: large; groß; gross; grand; grande
xl: extra large; x large
xxl: 2 xl; xx large
xxxl: 3 xl
wide: extra wide; wide fit; wide width
petite: petites
plus: plus size; plus sized
tall: long fit
king: king size
queen: queen size
twin: twin size
full: full size
mini: miniature
""")
)
BED_SIZES = frozenset(("king", "queen", "twin", "full"))  # alone only beside these words
BEDDING = frozenset("bed mattress sheet comforter quilt blanket duvet frame futon topper pillow headboard".split())
BARE_SIZES = frozenset(("s", "m", "l"))  # a lone letter is a size only behind the word "size"
# Of each unit: what is measured, and how much of its base unit (mm, g, ml, GB, W, V, mAh, Hz, pieces) it is.
UNITS = {
    **dict.fromkeys(("inch", "in", "zoll"), ("length", 25.4)),
    **dict.fromkeys(("ft", "foot", "feet", "pied"), ("length", 304.8)),
    "mm": ("length", 1.0), "cm": ("length", 10.0), **dict.fromkeys(("m", "meter", "metre"), ("length", 1000.0)),
    **dict.fromkeys(("yd", "yard"), ("length", 914.4)),
    "mg": ("mass", 0.001), **dict.fromkeys(("g", "gram"), ("mass", 1.0)),
    **dict.fromkeys(("kg", "kilo", "kilogram"), ("mass", 1000.0)),
    **dict.fromkeys(("lb", "pound"), ("mass", 453.6)), **dict.fromkeys(("oz", "ounce"), ("ounce", 1.0)),
    "ml": ("volume", 1.0), "cl": ("volume", 10.0), **dict.fromkeys(("l", "liter", "litre"), ("volume", 1000.0)),
    **dict.fromkeys(("gal", "gallon"), ("volume", 3785.0)), **dict.fromkeys(("pint", "pt"), ("volume", 473.2)),
    "mb": ("memory", 0.001), "gb": ("memory", 1.0), "tb": ("memory", 1000.0),
    **dict.fromkeys(("w", "watt"), ("power", 1.0)), **dict.fromkeys(("v", "volt"), ("voltage", 1.0)),
    "mah": ("charge", 1.0), "hz": ("frequency", 1.0), "mhz": ("frequency", 1e6), "ghz": ("frequency", 1e9),
    **dict.fromkeys(("pack", "pk", "count", "ct", "piece", "pc", "pcs", "stück"), ("pieces", 1.0)),
    **dict.fromkeys(("person", "people"), ("persons", 1.0)), **dict.fromkeys(("year", "yr"), ("years", 1.0)),
    "k": ("resolution", 1.0), "p": ("lines", 1.0), "dpi": ("dots", 1.0),
    **dict.fromkeys(("°", "degree"), ("degrees", 1.0)),
}  # fmt: skip

# --- Negations --------------------------------------------------------------------------------------------------------
NEGATIONS = frozenset("without not no except ohne kein keine keinen nicht sans sin senza zonder geen sem utan bez без"
                      .split())  # fmt: skip
# Names and compounds with such a word in them. "no" and "not" before these words are part of what the thing is called.
NO_NEGATION = frozenset(
    tuple(phrase.split())
    for phrase in (
        "listen without prejudice; bite not; no man; not your daughter; without a trace; fear no; no fear; "
        "no nonsense; no bull; no boundaries; no rest for; why not; knot not; forget me not; touch me not; not today; "
        "not a; if not; doctors without borders; men without hats; rebel without a cause; sin city; "
        "comic sans; open sans"
    ).split("; ")
)
COMPOUND_WITH_NO = frozenset(
    "show slip tie touch sew iron pull drill bake spill tear stick bark chew rinse shed wax skid fuss mess heat cook "
    "kink roll ride limit name man brainer scope more crease drip rust fade knead churn poo frills".split()
)
# What a phrase with a negation in it is printed on or sold as: "watch the game not your phone tshirt".
CARRIERS = frozenset(
    "shirt tee sweatshirt mug poster sticker decal book dvd cd album vinyl game movie sign print magnet "
    "keychain tattoo puzzle calendar".split()
)
FREE_NAMES = frozenset("hand duty care toll royalty range scot carefree interest free".split())  # "hands free"

# --- Price ------------------------------------------------------------------------------------------------------------
CHEAP = frozenset(
    "cheap cheaper cheapest affordable inexpensive budget economical günstig günstige billig billige preiswert barato "
    "barata economico économique goedkoop".split()
)
LIMITS = ("under", "below", "less than", "up to", "at most", "max", "unter", "bis", "moins de", "menos de", "meno di")
CURRENCIES = ("$", "€", "£", "dollar", "dollars", "usd", "euro", "euros", "eur", "pounds", "gbp", "bucks")

# --- Words without a meaning of their own -----------------------------------------------------------------------------
USE_WORDS = frozenset(("for", "für", "pour", "para", "per", "voor"))
BREAKS = USE_WORDS | frozenset("with mit avec con in by from to on at von de of under".split())
STOP_WORDS = frozenset(
    "a an the and or of my your our his her i me we you it is are be am do does did can could should would will need "
    "want wants looking look find buy buying get some any that this these those which what whats who how where when "
    "please best good great new nice really very just but also as so if than then there here ones like "
    "size sized made der die das ein eine und oder le la les un une et el los las y o il e percent "
    "help helps something thing things stuff product products item items color colour".split()
)
# Things that belong to another one: "phone case", "lid for mug".
ACCESSORY_WORDS = frozenset(
    "case cover sleeve pouch strap band charger cable cord adapter adaptor mount holder stand bracket filter refill "
    "replacement lid cap protector skin kit part bulb shade lace insole bag tip battery cartridge toner cleaner "
    "brush tray rack hook clip liner wax polish dock hub pad attachment accessory fan screw".split()
)
# The last word of what is asked for, which says nothing about its kind: "drill bit set", "nail kit".
VAGUE_KINDS = frozenset(
    "set kit pack pair bundle combo collection essential accessory supply gear equipment art".split()
)
