"""Draws one example: scenes, messages, and the completion the model should give. Training, held-out set and
examples all come from here; `split` decides which phrasings, words, fonts and colour shades may be used.

An Example's `answer` is what is judged; `thought` precedes it when thinking is on; `call` stands in place of an
answer where a declared tool should be called.
"""

import random
import string
from dataclasses import dataclass, field

import assets
import phrases
import tools
from scenes import COLOURS, KINDS, Scene, add_shape, add_text, named_colour, sample_scene

MAX_SHAPES = 7


@dataclass
class Example:
    skill: str
    scenes: list[Scene]
    messages: list[dict]
    answer: str = ""
    thought: str = ""
    call: tuple[str, dict] | None = None
    tools: list[dict] | None = None
    thinking: bool = False


def pick(rng: random.Random, split_pair, split: str) -> str:
    return rng.choice(split_pair[0] if split == "train" else split_pair[1])


HELDOUT_SENTENCES = {sentence for _, heldout in phrases.ASK.values() for sentence in heldout}
IMPERATIVES = ("Read", "Tell", "Name", "Count", "Describe", "Spell", "Give", "Say", "Write", "Look", "Transcribe")


def reworded(rng: random.Random, sentence: str) -> str:
    """Training only: other wrappings of a trained sentence, but never a held-out one."""
    other = sentence
    if rng.random() < 0.3:
        swaps = [("the picture", "the image"), ("the image", "the picture"), ("the picture", "this picture"), ("the image", "this image"),
                 ("is there", "is here"), ("do you see", "can you see"), ("can you see", "do you see"), ("this image", "the image")]
        old, new = rng.choice(swaps)
        other = other.replace(old, new)
    if other.startswith(IMPERATIVES) and other.endswith(".") and "." not in other[:-1] and rng.random() < 0.4:
        bare = other[0].lower() + other[1:-1]
        other = rng.choice((f"Please {bare}.", f"Can you {bare}?", f"Can you please {bare}?", f"I want you to {bare}.", f"Now {bare}.", f"Could you {bare}?"))
    elif other.startswith(("What ", "Which ", "How ")) and rng.random() < 0.1:
        bare = other[0].lower() + other[1:]
        other = rng.choice((f"Tell me: {bare}", f"Can you tell me: {bare}", f"Look at this. {other}", f"In the picture, {bare}", f"In this image, {bare}", f"So {bare}"))
    return sentence if other in HELDOUT_SENTENCES else other


def ask(rng: random.Random, intent: str, split: str, polite: bool = True, **slots) -> str:
    question = pick(rng, phrases.ASK[intent], split)
    if split == "train":
        question = reworded(rng, question)
    question = question.format(**slots)
    if polite:
        question = pick(rng, phrases.POLITE, split).format(question)
    return worn(rng, question)


def worn(rng: random.Random, question: str) -> str:
    """What hurried people leave out: the capital, the full stop or question mark."""
    if rng.random() < 0.12:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.12 and question[-1] in ".?!":
        question = question[:-1]
    return question


def article(name: str) -> str:
    return ("an " if name[0] in "aeiou" else "a ") + name


def listing(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def plural(name: str, n: int) -> str:
    return name if n == 1 else name + ("es" if name.endswith("s") else "s")


def colour_word(rng: random.Random) -> str:
    return "colour" if rng.random() < 0.5 else "color"


# ---- Text to print ---------------------------------------------------------------------------------------------------


def printed_word(rng: random.Random, split: str, longest: int = 12) -> str:
    """Mostly English words; in training also letter strings, so that reading never leans on guessing."""
    if split == "train" and rng.random() < 0.3:
        style = rng.random()
        n = min(longest, rng.randint(1, 9))
        if style < 0.5:
            word = "".join(rng.choice(string.ascii_lowercase) for _ in range(n))
        else:  # two halves of different words
            a, b = rng.choice(assets.words(split)), rng.choice(assets.words(split))
            word = (a[: rng.randint(1, 6)] + b[-rng.randint(1, 6) :])[:longest]
    else:
        while True:
            word = rng.choice(assets.words(split))
            if len(word) <= longest:
                break
    case = rng.random()
    return word if case < 0.45 else word.capitalize() if case < 0.7 else word.upper()


def printed_number(rng: random.Random, longest: int = 7) -> str:
    if rng.random() < 0.12 and longest > 3:
        return f"{rng.randint(0, 999)}.{rng.randint(0, 99):0{rng.choice((1, 2))}d}"
    n = rng.randint(1, min(longest, 7))
    return str(rng.randint(0 if n == 1 else 10 ** (n - 1), 10**n - 1))


def is_number(text: str) -> bool:
    return text[0].isdigit()


def printed(rng: random.Random, split: str, longest: int) -> str:
    return printed_number(rng, longest) if rng.random() < 0.33 else printed_word(rng, split, longest)


def letters_thought(text: str) -> str:
    return ("The digits are " if is_number(text) else "The letters are ") + "-".join(text) + "."


# ---- Questions about one scene. Each returns (question, answer, thought, skill) -----------------------------------------------


def ask_reading(rng, scene, split):
    text, thought = scene.texts[0].string, letters_thought(scene.texts[0].string)
    number = is_number(text)
    named = scene.texts[0].colour
    fits = "number" if number else "word"
    style = rng.random()
    if named and style < 0.25:
        return ask(rng, "text_colour", split, colour=colour_word(rng)), f"The text is {named}.", f"I see {named} text.", "read"
    if style < 0.40:
        return ask(rng, "read", split), f'It says "{text}".', thought, "read"
    if style < 0.75:
        other = rng.random() < 0.06
        intent = "read_number" if number != other else "read_word"
        return ask(rng, intent, split), f"The number is {text}." if number else f'The word is "{text}".', thought, "read"
    if style < 0.86:
        return ask(rng, "read_bare", split, polite=False), text, thought, "read"
    if style < 0.90 and not number:
        return ask(rng, "spell", split), "-".join(text) + ".", f'The word is "{text}".', "read"
    if style < 0.94:
        claim = text if rng.random() < 0.5 else printed(rng, split, 12)
        yes = f'Yes, it says "{text}".' if claim == text else f'No, it says "{text}".'
        return ask(rng, "says_it", split, text=claim), yes, thought, "read"
    return ask(rng, "describe", split), "The picture shows " + contents(scene) + ".", thought, "read"


def left_to_right(scene) -> list:
    return sorted(scene.shapes, key=lambda s: s.x)


def contents(scene: Scene) -> str:
    items = []
    if scene.texts:
        text = scene.texts[0].string
        items.append(f"the number {text}" if is_number(text) else f'the word "{text}"')
    items += [article(s.name) for s in left_to_right(scene)]
    return listing(items)


def seen(scene: Scene) -> str:
    return "From left to right I see " + listing([article(s.name) for s in left_to_right(scene)]) + "." if scene.shapes else "I see no shapes."


def ask_count(rng, scene, split):
    """Half of the time about a kind and colour that is there."""
    style = rng.random()
    present = rng.choice(scene.shapes) if scene.shapes and rng.random() < 0.8 else None
    kind = present.kind if present else rng.choice(KINDS)
    colour = present.colour if present else rng.choice(tuple(COLOURS))
    if style < 0.3:
        chosen, what = [s for s in scene.shapes if s.kind == kind], kind
    elif style < 0.65:
        chosen, what = [s for s in scene.shapes if s.kind == kind and s.colour == colour], f"{colour} {kind}"
    elif style < 0.82:
        chosen, what = [s for s in scene.shapes if s.colour == colour], f"{colour} shape"
    else:
        chosen, what = scene.shapes, "shape"
    n = len(chosen)
    question = ask(rng, "count", split, what=plural(what, 2))
    answer = f"There is 1 {what}." if n == 1 else f"There are {n or 'no'} {plural(what, n)}."
    return question, answer, seen(scene), "shapes"


def unique(scene, attribute):
    values = [getattr(s, attribute) for s in scene.shapes]
    return [s for s in scene.shapes if values.count(getattr(s, attribute)) == 1]


SIDES = {"on the left": (0, -1), "on the right": (0, 1), "at the top": (1, -1), "at the bottom": (1, 1)}
SIDE_WORDS = {"on the left": ["on the left", "on the left side", "at the left", "leftmost"], "on the right": ["on the right", "on the right side", "at the right", "rightmost"],
              "at the top": ["at the top", "on top", "at the very top"], "at the bottom": ["at the bottom", "at the very bottom"]}
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
RELATION_WORDS = {"left of": ["left of", "to the left of", "on the left of"], "right of": ["right of", "to the right of", "on the right of"],
                  "above": ["above", "over"], "below": ["below", "under"]}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def offset(shape, other, axis, scene) -> float:
    return (shape.x - other.x) / scene.width if axis == 0 else (shape.y - other.y) / scene.height


def ask_place(rng, scene, split):
    """Sides and relations; the scene was laid out with a gap between all centres."""
    if rng.random() < 0.5 or len(scene.shapes) < 2:
        side = rng.choice(tuple(SIDES))
        axis, sign = SIDES[side]
        at = max(scene.shapes, key=lambda s: sign * (s.y if axis else s.x))
        words = rng.choice([w for w in SIDE_WORDS[side] if "most" not in w])
        return ask(rng, "side", split, side=words), f"The shape {side} is {article(at.name)}.", seen(scene), "shapes"
    relation = rng.choice(tuple(RELATIONS))
    axis, sign = RELATIONS[relation]
    anchors = [s for s in unique(scene, "kind") if sum(sign * offset(o, s, axis, scene) > 0 for o in scene.shapes) == 1]
    if rng.random() < 0.65 and anchors:
        anchor = rng.choice(anchors)
        at = next(o for o in scene.shapes if sign * offset(o, anchor, axis, scene) > 0)
        words = rng.choice(RELATION_WORDS[relation])
        answer = f"The {at.name} is {relation} the {anchor.kind}."
        return ask(rng, "relation", split, relation=words, kind=anchor.kind), answer, seen(scene), "shapes"
    pair = unique(scene, "kind")
    if len(pair) < 2:
        return ask_count(rng, scene, split)
    a, b = rng.sample(pair, 2)
    true = relation if sign * offset(a, b, axis, scene) > 0 else OPPOSITE[relation]
    yes = "Yes" if true == relation else "No"
    words = rng.choice(RELATION_WORDS[relation])
    return (ask(rng, "is_relation", split, relation=words, kind=a.kind, other=b.kind), f"{yes}, the {a.kind} is {true} the {b.kind}.",
            seen(scene), "shapes")


def ask_property(rng, scene, split):
    style = rng.random()
    by_kind, by_colour = unique(scene, "kind"), unique(scene, "colour")
    if style < 0.4 and by_kind:
        s = rng.choice(by_kind)
        return ask(rng, "colour_of", split, colour=colour_word(rng), kind=s.kind), f"The {s.kind} is {s.colour}.", seen(scene), "shapes"
    if style < 0.75 and by_colour:
        s = rng.choice(by_colour)
        return ask(rng, "shape_of", split, colour=s.colour), f"The {s.colour} shape is {article(s.kind)}.", seen(scene), "shapes"
    if style < 0.88 and len(scene.shapes) == 1:
        return ask(rng, "one_shape", split), f"It is {article(scene.shapes[0].name)}.", seen(scene), "shapes"
    present = rng.choice(scene.shapes) if rng.random() < 0.5 else None
    kind, colour = (present.kind, present.colour) if present else (rng.choice(KINDS), rng.choice(tuple(COLOURS)))
    there = any(s.kind == kind and s.colour == colour for s in scene.shapes)
    what = article(f"{colour} {kind}")
    return ask(rng, "is_there", split, what=what), f"Yes, there is {what}." if there else f"No, there is no {colour} {kind}.", seen(scene), "shapes"


def ask_describe(rng, scene, split):
    return ask(rng, "describe", split), "The picture shows " + contents(scene) + ".", seen(scene), "shapes"


def ask_missing(rng, scene, split):
    """The question does not fit the picture."""
    if scene.texts and not scene.shapes:
        if rng.random() < 0.5:
            return ask_count(rng, scene, split)
        return ask(rng, "one_shape", split), "There are no shapes in the picture.", "I see text and no shapes.", "shapes"
    return ask(rng, rng.choice(("read", "read_word", "read_number")), split), "There is no text in the picture.", "I see no text.", "read"


# ---- Scenes and whole examples ---------------------------------------------------------------------------------------------


def text_scene(rng, split, size, longest=12) -> Scene:
    scene = sample_scene(rng, *size)
    colour = rng.choice(tuple(COLOURS)) if rng.random() < 0.2 else None
    add_text(rng, scene, printed(rng, split, longest), split, colour=colour)
    return scene


def shapes_scene(rng, split, size, n, distinct=False, gap=0.0) -> Scene:
    """n shapes; few kinds and colours among them when they should repeat, so that counting is worth asking."""
    scene = sample_scene(rng, *size)
    kinds = rng.sample(KINDS, min(n, 6)) if distinct else [rng.choice(KINDS) for _ in range(rng.randint(1, 3))]
    colours = rng.sample(tuple(COLOURS), min(n, 8)) if distinct and rng.random() < 0.6 else [rng.choice(tuple(COLOURS)) for _ in range(rng.randint(1, 3))]
    largest = 0.24 if n <= 2 else 0.18 if n <= 4 else 0.13
    for i in range(n):
        kind = kinds[i % len(kinds)] if distinct else rng.choice(kinds)
        colour = colours[i % len(colours)] if distinct else rng.choice(colours)
        for _ in range(4):
            if add_shape(rng, scene, kind, colour, split, gap, (0.065, largest)):
                break
            colour = rng.choice(tuple(COLOURS))
    if not scene.shapes:
        return shapes_scene(rng, split, size, n, distinct, gap)
    return scene


def mixed_scene(rng, split, size) -> Scene:
    """A line of text above or below one or two shapes."""
    scene = sample_scene(rng, *size)
    band = (0.0, 0.45) if rng.random() < 0.5 else (0.55, 1.0)
    add_text(rng, scene, printed(rng, split, 8), split, band)
    for _ in range(rng.randint(1, 2)):
        add_shape(rng, scene, rng.choice(KINDS), rng.choice(tuple(COLOURS)), split, 0.0, (0.07, 0.14))
    return scene


def question_about(rng, scene, split):
    if scene.texts and scene.shapes:
        return rng.choice((ask_reading, ask_reading, ask_property, ask_describe))(rng, scene, split)
    if scene.texts:
        return (ask_missing if rng.random() < 0.05 else ask_reading)(rng, scene, split)
    if rng.random() < 0.05:
        return ask_missing(rng, scene, split)
    return rng.choice((ask_count, ask_count, ask_property, ask_property, ask_describe if len(scene.shapes) <= 5 else ask_count))(rng, scene, split)


def picture(rng, split, size, longest=12):
    """A scene and a question about it."""
    style = rng.random()
    if style < 0.5:
        scene = text_scene(rng, split, size, longest)
        return scene, question_about(rng, scene, split)
    if style < 0.58:
        scene = mixed_scene(rng, split, size)
        return scene, question_about(rng, scene, split)
    if style < 0.78:
        scene = shapes_scene(rng, split, size, rng.choice((1, 1, 2, 2, 3, 4, 5, 6, 7)), distinct=rng.random() < 0.4)
        return scene, question_about(rng, scene, split)
    n = rng.choice((2, 2, 3, 3, 4))
    gap = 0.10 if n <= 3 else 0.07
    scene = shapes_scene(rng, split, size, n, distinct=True, gap=gap)
    return scene, ask_place(rng, scene, split) if rng.random() < 0.85 else question_about(rng, scene, split)


def user(rng, question: str, n_images: int = 0) -> dict:
    if not n_images:
        return {"role": "user", "content": question}
    parts = [{"type": "image"} for _ in range(n_images)]
    text = {"type": "text", "text": question}
    return {"role": "user", "content": [text] + parts if rng.random() < 0.1 else parts + [text]}


def maybe_system(rng, split, messages, chance=0.08):
    if rng.random() < chance:
        messages.insert(0, {"role": "system", "content": pick(rng, phrases.SYSTEM, split)})
    return messages


def image_example(rng, split, size, longest=12) -> Example:
    scene, (question, answer, thought, skill) = picture(rng, split, size, longest)
    if rng.random() < 0.02:  # small talk beside a picture is still small talk
        train, heldout, answer, thought = phrases.TALK[rng.choice(tuple(phrases.TALK))]
        question, skill = worn(rng, pick(rng, (train, heldout), split)), "talk"
    return Example(skill, [scene], maybe_system(rng, split, [user(rng, question, 1)]), answer, thought)


def thinking_example(rng, split, size, longest=12) -> Example:
    example = image_example(rng, split, size, longest) if rng.random() < 0.8 else talk_example(rng, split)
    example.thinking, example.skill = True, "think"
    return example


def two_turns(rng, split, size, longest=12) -> Example:
    """A question about a picture, its answer, and a second question or a word of small talk."""
    scene, (q1, a1, _, _) = picture(rng, split, size, longest)
    messages = maybe_system(rng, split, [user(rng, q1, 1), {"role": "assistant", "content": a1}])
    if rng.random() < 0.6:
        q2, a2, t2, _ = question_about(rng, scene, split)
        if rng.random() < 0.15:
            q2 = "And " + q2[0].lower() + q2[1:]
    else:
        intent = rng.choice(("thanks", "thanks", "good", "bad", "who", "bye", "can", "hello"))
        train, heldout, a2, t2 = phrases.TALK[intent]
        q2 = worn(rng, pick(rng, (train, heldout), split))
    messages.append({"role": "user", "content": q2})
    thinking = rng.random() < 0.15
    return Example("talk", [scene], messages, a2, t2, thinking=thinking)


def talk_example(rng, split) -> Example:
    if rng.random() < 0.06:
        question = worn(rng, pick(rng, phrases.NO_PICTURE, split))
        answer, thought = phrases.NO_PICTURE_ANSWER, phrases.NO_PICTURE_THOUGHT
        return Example("talk", [], maybe_system(rng, split, [user(rng, question)]), answer, thought)
    intents = tuple(phrases.TALK)
    messages = []
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        train, heldout, answer, _ = phrases.TALK[rng.choice(intents)]
        messages += [user(rng, worn(rng, pick(rng, (train, heldout), split))), {"role": "assistant", "content": answer}]
    train, heldout, answer, thought = phrases.TALK[rng.choice(intents)]
    messages.append(user(rng, worn(rng, pick(rng, (train, heldout), split))))
    return Example("talk", [], maybe_system(rng, split, messages, 0.15), answer, thought)


def tool_example(rng, split) -> Example:
    """A tool to call, or a tool's result to use; sometimes tools are declared and not needed."""
    declared, messages, answer, thought, call = tools.conversation(rng, split)
    if declared and rng.random() < 0.08:
        example = talk_example(rng, split)
        example.tools, example.skill = declared, "tool"
    else:
        example = Example("tool", [], maybe_system(rng, split, messages, 0.1), answer, thought, call, declared)
    example.thinking = rng.random() < 0.2
    return example


def image_tool_example(rng, split, size, longest=10) -> Example:
    """A tool called with what the picture says, or a picture question with tools declared and not needed."""
    if rng.random() < 0.3:
        example = image_example(rng, split, size, longest)
        example.tools = tools.declarations(rng, split)
        example.skill = "tool"
        return example
    scene = text_scene(rng, split, size, longest)
    text = scene.texts[0].string
    declared, question, call = tools.about_text(rng, split, text)
    return Example("tool", [scene], [user(rng, question, 1)], "", letters_thought(text), call, declared, rng.random() < 0.15)


def pair_example(rng, split, size, longest=8) -> Example:
    """Two pictures and a question about one of them."""
    both = [text_scene(rng, split, size, longest) if rng.random() < 0.5 else shapes_scene(rng, split, size, rng.randint(1, 2)) for _ in range(2)]
    which = rng.randrange(2)
    nth = ("first", "second")[which]
    answer = f"The {nth} picture shows {contents(both[which])}."
    thought = f"I look at the {nth} picture."
    return Example("pair", both, [user(rng, ask(rng, "nth_picture", split, nth=nth), 2)], answer, thought)
