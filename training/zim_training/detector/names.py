"""What the mini detector can be asked for, and which cut-outs show it.

Emoji files are named by code point, whose Unicode name says what they show ("fluent_1f955" is
CARROT). Faces, signs and symbols are left out: nobody wants a matte of a warning sign, and their
names say little about their looks.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from zim_training.data.sources import list_sources

#: plain name: Unicode names of it, separated by "/"; no entry after the colon: the name itself
_WORDS = """
rabbit: rabbit/rabbit face; bat; bear: bear face; beaver; beetle; bison; bug; butterfly
camel: bactrian camel/dromedary camel; chicken; chick: baby chick/front-facing baby chick
cow: cow face; crab; cricket; dog: guide dog/dog; dolphin; dragon; flamingo; fly; fox: fox face
giraffe: giraffe face; goat; hamster: hamster face; hippopotamus; horse; kangaroo; koala
ladybug: lady beetle; leopard; lizard; monkey: monkey/monkey face; mosquito
mouse: mouse/mouse face; octopus; orangutan; owl; ox; panda: panda face; parrot; penguin
pig: pig face; ram; rat; rhinoceros; scorpion; shark; shrimp: shrimp/fried shrimp; sloth; snail
spider; squid; swan; tiger: tiger/tiger face; turkey; unicorn: unicorn face; whale; worm
zebra: zebra face; badger; chipmunk; blowfish
apple: red apple; avocado; bacon; bagel; banana; bell pepper; beans; blueberries; carrot
cheese: cheese wedge; cherries; chestnut; coconut; cookie; croissant; cucumber; cupcake; doughnut
egg; french fries; garlic; grapes; hamburger; hot dog; kiwi: kiwifruit; lemon; mango; mushroom
olive; onion; pancakes; peanuts; pie; pineapple; pizza: slice of pizza; popcorn; potato; sandwich
strawberry; taco; tangerine; waffle; ice cream: ice cream/soft ice cream; corn: ear of maize; candy
umbrella; guitar; banjo; trumpet; saxophone; accordion; camera: camera/camera with flash; candle
chair; bell; bomb; briefcase; broom; bucket; balloon; backpack: school satchel
book: closed book/blue book/orange book; crown; envelope; gear; hammer; headphones: headphone
key; ladder; lock; magnet; microphone; microscope; mirror; necktie; pill; purse; ring; rocket
scarf; screwdriver; scissors: black scissors; skateboard; socks; stethoscope; teapot; telescope
tent; tooth; toothbrush; watch; wrench; axe; drum: long drum; brain; bone; feather; gloves; jeans
shirt: t-shirt; kimono; bikini; hat: top hat; glasses: eyeglasses; boot: womans boots/hiking boot
shoe: athletic shoe/mans shoe; car: automobile/oncoming automobile; bus; tractor
truck: delivery truck/articulated lorry; fire engine; airplane; ship; sailboat; speedboat; tram
train; cactus; rose; tulip; sunflower; hibiscus; palm tree; tree: evergreen tree; potted plant
seedling; lotus; snowman: snowman/snowman without snow; snowflake; star: white medium star
pumpkin: jack-o-lantern; robot: robot face; ghost; gift: wrapped present; castle: japanese castle
basketball: basketball and hoop; baseball; volleyball; yarn: ball of yarn
globe: globe with meridians
telephone: black telephone; phone: mobile phone; screw: nut and bolt; knife: dagger knife
light bulb: electric light bulb; battery; basket: wastebasket; jar; barrel: oil drum
"""

#: cut-outs of photographs and renders whose file name says what they are
_CUTS = {
    "dog": ("dog", "bulldog", "corgi"),
    "bird": ("bird", "sparrow"),
    "banana": ("banana",),
    "teapot": ("teapot",),
    "microphone": ("microphone",),
    "teddy bear": ("teddy",),
    "dragon": ("dragon",),
    "cactus": ("cactus",),
    "crab": ("crab",),
    "hot dog": ("hotdog",),
    "backpack": ("backpack",),
    "lantern": ("lantern",),
    "car": ("car",),
    "armchair": ("armchair",),
    "fire extinguisher": ("extinguisher",),
    "sword": ("sword",),
    "horse": ("horse",),
    "owl": ("owl",),
}

COLOURS = (
    *("red", "orange", "yellow", "green", "blue", "purple"),
    *("pink", "brown", "black", "white", "grey"),
)


def unicode_names() -> dict[str, str]:
    """Return plain name for Unicode name, both lower case."""
    table: dict[str, str] = {}
    for entry in _WORDS.replace("\n", ";").split(";"):
        plain, _, spelled = (part.strip() for part in entry.partition(":"))
        if plain:
            table |= dict.fromkeys((spelled or plain).split("/"), plain)
    return table


def name_of(file: str, table: dict[str, str]) -> str | None:
    """Return the plain name of a cut-out by its file name, or None if it has none."""
    stem = Path(file).stem.lower()
    family, _, rest = stem.partition("_")
    if family in ("fluent", "noto"):
        points = rest.removesuffix("-fe0f").split("-")
        if len(points) > 1:  # a sequence shows something else than its first character
            return None
        try:
            return table.get(unicodedata.name(chr(int(points[0], 16)), "").lower())
        except (ValueError, OverflowError):
            return None
    if family == "cut":
        words = {word.rstrip("0123456789") for word in stem.split("_")[2:]}
        return next((name for name, keys in _CUTS.items() if words & set(keys)), None)
    return None


def named_files(root: Path) -> dict[str, list[Path]]:
    """List the cut-outs of every name; names and files in a fixed order."""
    table = unicode_names()
    found: dict[str, list[Path]] = {}
    for source in list_sources(root, "foregrounds"):
        name = name_of(source.file, table)
        if name is not None:
            found.setdefault(name, []).append(root / source.file)
    return dict(sorted(found.items()))
