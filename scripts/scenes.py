"""Scenes with captions, composed from openly licensed emoji art: the data set of the embedded models.

A scene is one object, two objects in a stated relation, or one wearing another, on a named background, in a style. It knows the
mask of each object and a depth map, so the same scenes train the base model, inpainting, depth and super-resolution.

Art:   Microsoft Fluent Emoji 3D (MIT), npm @lobehub/fluent-emoji-3d 1.1.0; 256 px RGBA, file name = code point.
Names: emojibase-data 17.0.0 (MIT) for the check that a code point is what OBJECTS calls it (see fetch_art.py).
"""

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from scipy.ndimage import distance_transform_edt

ART = Path(__file__).resolve().parent.parent / ".data" / "fluent" / "assets"

# Name in a caption -> code point. Chosen to look unlike each other at 128 px. New ones go to the end: --favour counts from there.
OBJECTS = {
    # animals, seen from the front: they can wear a hat
    "monkey": "1f435", "dog": "1f436", "wolf": "1f43a", "fox": "1f98a", "raccoon": "1f99d", "cat": "1f431", "lion": "1f981",
    "tiger": "1f42f", "cow": "1f42e", "pig": "1f437", "mouse": "1f42d", "hamster": "1f439", "rabbit": "1f430", "bear": "1f43b",
    "koala": "1f428", "panda": "1f43c", "frog": "1f438",
    # animals, seen whole
    "unicorn": "1f984", "elephant": "1f418", "zebra": "1f993", "giraffe": "1f992", "chicken": "1f414", "penguin": "1f427",
    "owl": "1f989", "flamingo": "1f9a9", "parrot": "1f99c", "duck": "1f986", "turtle": "1f422", "snail": "1f40c",
    "octopus": "1f419", "crab": "1f980", "whale": "1f433", "dolphin": "1f42c", "fish": "1f420", "butterfly": "1f98b",
    "bee": "1f41d", "ladybug": "1f41e",
    # food and plants
    "apple": "1f34e", "banana": "1f34c", "grapes": "1f347", "watermelon": "1f349", "lemon": "1f34b", "pineapple": "1f34d",
    "strawberry": "1f353", "cherries": "1f352", "avocado": "1f951", "carrot": "1f955", "corn": "1f33d", "broccoli": "1f966",
    "mushroom": "1f344", "hamburger": "1f354", "pizza": "1f355", "doughnut": "1f369", "cupcake": "1f9c1", "rose": "1f339",
    "sunflower": "1f33b", "tulip": "1f337", "cactus": "1f335", "tree": "1f332",
    # things
    "car": "1f697", "bus": "1f68c", "rocket": "1f680", "sailboat": "26f5", "helicopter": "1f681", "house": "1f3e0",
    "tent": "26fa", "crown": "1f451", "top hat": "1f3a9", "graduation cap": "1f393", "balloon": "1f388", "soccer ball": "26bd",
    "basketball": "1f3c0", "guitar": "1f3b8", "trumpet": "1f3ba", "drum": "1f941", "alarm clock": "23f0", "umbrella": "2602-fe0f",
    "light bulb": "1f4a1", "key": "1f511", "camera": "1f4f7", "gift": "1f381", "bell": "1f514",
    # the second eighty: animals
    "horse": "1f40e", "gorilla": "1f98d", "deer": "1f98c", "camel": "1f42a", "rhinoceros": "1f98f", "kangaroo": "1f998",
    "hedgehog": "1f994", "bat": "1f987", "skunk": "1f9a8", "peacock": "1f99a", "swan": "1f9a2", "chick": "1f425",
    "crocodile": "1f40a", "snake": "1f40d", "dragon": "1f409", "dinosaur": "1f995", "shark": "1f988", "jellyfish": "1fabc",
    "lobster": "1f99e", "caterpillar": "1f41b",
    # food
    "tangerine": "1f34a", "peach": "1f351", "kiwi": "1f95d", "tomato": "1f345", "coconut": "1f965", "eggplant": "1f346",
    "potato": "1f954", "onion": "1f9c5", "croissant": "1f950", "pretzel": "1f968", "waffle": "1f9c7", "cheese": "1f9c0",
    "taco": "1f32e", "sandwich": "1f96a", "french fries": "1f35f", "popcorn": "1f37f", "cookie": "1f36a",
    "birthday cake": "1f382", "lollipop": "1f36d", "ice cream": "1f366", "teapot": "1fad6", "fried egg": "1f373",
    # plants, sky and weather
    "palm tree": "1f334", "clover": "1f340", "maple leaf": "1f341", "moon": "1f319", "star": "2b50", "snowman": "26c4",
    # vehicles and places
    "bicycle": "1f6b2", "ambulance": "1f691", "fire truck": "1f692", "tractor": "1f69c", "train": "1f682", "ship": "1f6a2",
    "flying saucer": "1f6f8", "castle": "1f3f0", "ferris wheel": "1f3a1", "volcano": "1f30b", "anchor": "2693",
    "skateboard": "1f6f9",
    # things
    "trophy": "1f3c6", "robot": "1f916", "ghost": "1f47b", "pumpkin": "1f383", "dice": "1f3b2", "saxophone": "1f3b7",
    "microphone": "1f3a4", "headphones": "1f3a7", "glasses": "1f453", "t-shirt": "1f455", "backpack": "1f392",
    "diamond": "1f48e", "book": "1f4d5", "laptop": "1f4bb", "television": "1f4fa", "hammer": "1f528", "bomb": "1f4a3",
    "magnet": "1f9f2", "chair": "1fa91", "bucket": "1faa3",
}  # fmt: skip

# Never seen by any embedded model: the subjects of the DreamBooth lessons, with the class word that the base model does know.
HELD_OUT = {
    "poodle": ("1f429", "dog"), "black cat": ("1f408-200d-2b1b", "cat"), "polar bear": ("1f43b-200d-2744-fe0f", "bear"),
    "taxi": ("1f695", "car"), "violin": ("1f3bb", "guitar"), "rooster": ("1f413", "chicken"), "blowfish": ("1f421", "fish"),
    "hibiscus": ("1f33a", "rose"), "pear": ("1f350", "apple"), "american football": ("1f3c8", "ball"),
}  # fmt: skip

ALIASES = {
    "apple": "red apple",
    "bee": "honeybee",
    "car": "red car",
    "gift": "present",
    "tree": "pine tree",
    "mushroom": "red mushroom",
}
PLURAL = {"grapes", "cherries", "fries", "popcorn", "dice", "headphones", "glasses"}  # "grapes on a red background", no article
WEARERS = list(OBJECTS)[:17]
HATS = ["top hat", "crown", "graduation cap"]

BACKGROUNDS = {
    "red": (222, 52, 48), "orange": (246, 142, 32), "yellow": (250, 216, 62), "green": (62, 166, 76), "blue": (46, 106, 216),
    "purple": (132, 70, 182), "pink": (250, 152, 192), "brown": (120, 76, 46), "black": (24, 24, 28), "white": (246, 246, 246),
    "gray": (140, 142, 146), "cyan": (52, 190, 198),
}  # fmt: skip
STYLES = ["photo", "oil painting", "pencil sketch", "pixel art", "watercolor", "3d render"]
RELATIONS = ["alone", "left of", "above", "wearing"]
SIZES = {"small": (0.36, 0.44), "": (0.56, 0.70), "big": (0.84, 0.94)}  # share of the picture's side


@dataclass(frozen=True)
class Spec:
    """What a scene shows, without its pixels. objects[0] is to the left of / above / wearing objects[1]."""

    objects: tuple[str, ...]
    relation: str  # one of RELATIONS
    background: str
    graded: bool  # lighter at the top, darker at the bottom
    style: str
    size: str  # "", "small" or "big"; "" where there are two objects
    seed: int  # places, flips and shades
    anywhere: bool = False  # one object, of any size at any place: what a depth map has to say, as the words do not


@dataclass(frozen=True)
class Scene:
    spec: Spec
    picture: np.ndarray  # (H, W, 3) uint8
    masks: np.ndarray  # (N, H, W) float32 in [0, 1], visible part of each object
    depth: np.ndarray  # (H, W) float32 in [0, 1], 0 = background, 1 = nearest
    order: tuple[str, ...]  # objects from back to front


def is_test_triple(name: str, background: str, style: str) -> bool:
    """One (object, background, style) in ten is never trained on."""
    return hashlib.sha256(f"{name}|{background}|{style}".encode()).digest()[0] % 10 == 0


def is_test(spec: Spec) -> bool:
    return any(is_test_triple(name, spec.background, spec.style) for name in spec.objects)


@cache
def art(name: str) -> Image.Image:
    """The object's picture, cut to its visible part; RGBA, about 240 px."""
    code = OBJECTS[name] if name in OBJECTS else HELD_OUT[name][0]
    picture = Image.open(ART / f"{code}.webp").convert("RGBA")
    return picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 20)).getbbox())


def sample_spec(rng: random.Random, split: str = "train", relation: str | None = None, favour: int | None = None) -> Spec:
    """A random scene of split "train" (no held-out triple), "test" (a held-out triple in it) or "any". favour: the objects after so
    many come three times as often as the first ones, which the model that is trained on knows already."""
    pool = list(OBJECTS) if favour is None else [*OBJECTS, *(2 * list(OBJECTS)[favour:])]
    while True:
        kind = relation or rng.choices(RELATIONS, [0.5, 0.2, 0.15, 0.15])[0]
        if kind == "wearing":
            objects = (rng.choice(WEARERS), rng.choice(HATS))
        else:
            objects = tuple(rng.sample(pool, 1 if kind == "alone" else 2))
            if len(set(objects)) < len(objects):
                continue
        spec = Spec(
            objects=objects,
            relation=kind,
            background=rng.choice(list(BACKGROUNDS)),
            graded=rng.random() < 0.2,
            style=rng.choices(STYLES, [0.5, 0.1, 0.1, 0.1, 0.1, 0.1])[0],
            size=rng.choices(["", "small", "big"], [0.6, 0.2, 0.2])[0] if kind == "alone" else "",
            seed=rng.getrandbits(31),
        )
        if split == "any" or is_test(spec) == (split == "test"):
            return spec


# --- pixels -------------------------------------------------------------------------------------------------------------------


def _background(spec: Spec, side: int, rng: random.Random) -> np.ndarray:
    colour = np.array([np.clip(c + rng.randint(-6, 6), 0, 255) for c in BACKGROUNDS[spec.background]], np.float32)
    light = np.linspace(0.25, -0.25, side, dtype=np.float32)[:, None, None] if spec.graded else np.zeros((1, 1, 1), np.float32)
    shaded = np.where(light > 0, colour + light * (255 - colour), colour * (1 + light))
    return np.broadcast_to(shaded, (side, side, 3)).copy()


def _boxes(spec: Spec, side: int, rng: random.Random) -> list[tuple[Image.Image, int, int]]:
    """Each object's picture at its final size, with its left upper corner."""

    def scaled(name: str, share: float, flip: bool = True) -> Image.Image:
        picture = art(name)
        scale = share * side / max(picture.size)
        picture = picture.resize(
            [max(1, round(n * scale)) for n in picture.size], Image.Resampling.BOX if scale < 0.4 else Image.Resampling.BICUBIC
        )
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and rng.random() < 0.5 else picture

    def near(centre: float, length: int, spread: float) -> int:
        place = round((centre + rng.uniform(-spread, spread)) * side - length / 2)
        return int(np.clip(place, 0, max(0, side - length)))

    if spec.anywhere:
        picture = scaled(spec.objects[0], rng.uniform(0.25, 0.7))
        return [(picture, near(rng.random(), picture.width, 0), near(rng.random(), picture.height, 0))]
    if spec.relation == "alone":
        picture = scaled(spec.objects[0], rng.uniform(*SIZES[spec.size]))
        spread = 0.18 if spec.size == "small" else 0.08
        return [(picture, near(0.5, picture.width, spread), near(0.5, picture.height, spread))]
    if spec.relation == "wearing":
        wearer = scaled(spec.objects[0], rng.uniform(0.58, 0.68))
        x, y = near(0.5, wearer.width, 0.06), near(0.62, wearer.height, 0.04)
        hat = scaled(spec.objects[1], 0.4 * wearer.width / side * rng.uniform(1.2, 1.4), flip=False)
        return [(wearer, x, y), (hat, x + (wearer.width - hat.width) // 2, max(0, y - round(0.62 * hat.height)))]
    shares = [rng.uniform(0.42, 0.5) for _ in spec.objects]
    pictures = [scaled(name, share) for name, share in zip(spec.objects, shares, strict=True)]
    centres = [(0.27, 0.5), (0.73, 0.5)] if spec.relation == "left of" else [(0.5, 0.27), (0.5, 0.73)]
    return [(p, near(cx, p.width, 0.05), near(cy, p.height, 0.05)) for p, (cx, cy) in zip(pictures, centres, strict=True)]


def _stylise(picture: Image.Image, style: str, light: np.ndarray, cover: np.ndarray) -> Image.Image:
    """The filter that stands for a style. light: the background alone, (H, W, 3); cover: where an object is, (H, W, 1) in [0, 1]."""
    side = picture.width
    if style == "oil painting":  # strokes of the middle colour nearby, rich paint
        return ImageEnhance.Color(picture.filter(ImageFilter.MedianFilter(2 * (side // 56) + 1))).enhance(1.3)
    if style == "pencil sketch":  # colour dodge by the blurred negative leaves lines; tinted paper, shaded objects
        grey = np.asarray(picture.convert("L"), np.float32)
        soft = np.asarray(picture.convert("L").filter(ImageFilter.GaussianBlur(side / 36)), np.float32)
        lines = np.clip((grey + 20) / (soft + 20), 0.25, 1.0) ** 1.5
        paper = (1 - cover) * (0.7 * light + 0.3 * 255) + cover * (0.45 * grey[..., None] + 0.55 * 255)
        return Image.fromarray((lines[..., None] * paper).astype(np.uint8))
    if style == "pixel art":
        small = picture.resize((side * 32 // 128 if side < 256 else 32,) * 2, Image.Resampling.BOX)
        return small.resize(picture.size, Image.Resampling.NEAREST)
    if style == "watercolor":  # a pale wash, darker where it dries at an edge
        wash = np.asarray(picture.filter(ImageFilter.GaussianBlur(side / 110)), np.float32)
        wide = np.asarray(picture.filter(ImageFilter.GaussianBlur(side / 40)), np.float32)
        return Image.fromarray(np.clip(0.68 * (wash + 0.6 * (wash - wide)) + 0.32 * 255, 0, 255).astype(np.uint8))
    return picture


def compose(spec: Spec, side: int = 128) -> Scene:
    """The scene's pixels, masks and depth at side x side; the same spec gives the same scene, bit for bit."""
    rng = random.Random(spec.seed)
    light = _background(spec, side, rng)
    canvas = light.copy()
    depth = np.zeros((side, side), np.float32)
    placed = list(zip(spec.objects, _boxes(spec, side, rng), strict=True))
    if spec.relation in ("left of", "above") and rng.random() < 0.5:
        placed.reverse()  # who stands in front
    cover = np.zeros((side, side, 1), np.float32)
    masks: dict[str, np.ndarray] = {}
    for level, (name, (picture, x, y)) in enumerate(placed):
        layer = Image.new("RGBA", (side, side))
        layer.alpha_composite(picture, (x, y))
        rgba = np.asarray(layer, np.float32)
        alpha = rgba[..., 3:] / 255
        colour = rgba[..., :3]
        if spec.style == "3d render":  # a studio: soft shadow on the wall, light from the left above
            shadow = Image.fromarray((alpha[..., 0] * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(side / 24))
            shadow = np.asarray(shadow, np.float32) / 255
            shadow = np.pad(shadow, ((side // 14, 0), (side // 14, 0)))[:side, :side]
            canvas = canvas * (1 - 0.5 * shadow[..., None])
            slope = (np.linspace(-1, 1, side)[:, None] + np.linspace(-1, 1, side)[None, :])[..., None] / 2
            colour = np.clip(colour * (1.08 - 0.3 * slope), 0, 255)
        canvas = canvas * (1 - alpha) + colour * alpha
        cover = np.maximum(cover, alpha)
        # Relief: an object is thickest far from its outline, like a cushion. Each stands a level nearer than the one behind.
        inside = distance_transform_edt(alpha[..., 0] > 0.5)
        relief = np.sqrt(np.clip(inside / (inside.max() + 1e-6), 0, 1))
        depth = np.where(alpha[..., 0] > 0.5, 0.45 + 0.3 * level + 0.25 * relief, depth).astype(np.float32)
        for other in masks:
            masks[other] = masks[other] * (1 - alpha[..., 0])
        masks[name] = alpha[..., 0]
    picture = _stylise(Image.fromarray(canvas.round().astype(np.uint8)), spec.style, light, cover)
    return Scene(
        spec=spec,
        picture=np.asarray(picture),
        masks=np.stack([masks[name] for name in spec.objects]),
        depth=depth,
        order=tuple(name for name, _ in placed),
    )


# --- words --------------------------------------------------------------------------------------------------------------------


def with_article(words: str) -> str:
    if words.split()[-1] in PLURAL:
        return words
    return ("an " if words[0] in "aeiou" and not words.startswith("uni") else "a ") + words


def caption(spec: Spec, rng: random.Random) -> str:
    """One of the ways in which a person asks for the scene; 10 % of them leave the background open."""

    def called(name: str) -> str:
        return ALIASES[name] if name in ALIASES and rng.random() < 0.3 else name

    names = [called(name) for name in spec.objects]
    subject = names[0]
    terse = rng.random() < 0.25  # "apple, blue background"
    if spec.size:
        subject = f"{spec.size} {subject}"
    if not terse:
        subject = with_article(subject)
    if spec.relation == "wearing":
        subject += rng.choice([" in ", " wearing "]) + with_article(names[1])
    elif spec.relation != "alone":
        first, second = (names[0], names[1]) if terse else (with_article(names[0]), with_article(names[1]))
        there, back = ("to the left of", "to the right of") if spec.relation == "left of" else ("above", "below")
        subject = f"{first} {there} {second}" if rng.random() < 0.6 else f"{second} {back} {first}"
        if rng.random() < 0.15:
            subject = f"{first} and {second}"

    if spec.style == "photo":
        look = rng.choice(["", "", "", "a photo of "])
    else:
        look = f"{with_article(spec.style)} of "
    colour = ("graded " if spec.graded and rng.random() < 0.7 else "") + spec.background
    where = rng.random()
    if where < 0.1:
        ground = ""
    elif terse:
        ground = f", {colour} background"
    elif where < 0.75:
        ground = f" on {with_article(colour)} background"
    elif where < 0.9:
        ground = f", {colour} background"
    else:
        ground = f" on {colour}"
    if terse and look:
        return f"{subject}{ground}, {spec.style}"
    return f"{look}{subject}{ground}"
