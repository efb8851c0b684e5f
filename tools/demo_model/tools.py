"""Tools to declare, requests that need them, and results to use. Tool names, parameter names, values and results vary,
so the model learns to copy them from the declaration and the request instead of knowing a few by heart."""

import json
import random
from dataclasses import dataclass

import assets

CITIES = (
    "Paris London Berlin Madrid Rome Vienna Oslo Lisbon Dublin Athens Prague Warsaw Cairo Tokyo Delhi Lima Quito Boston Chicago Denver Seattle Toronto "
    "Geneva Zurich Milan Naples Turin Lyon Nice Munich Hamburg Bremen Cologne Dresden Sydney Perth Osaka Seoul Manila Jakarta Nairobi Lagos Accra "
    "Tunis Havana Bogota Santiago Austin Dallas Houston Miami Porto Seville Krakow Riga Vilnius Tallinn Helsinki Bergen Malmo".split(),
    "Stockholm Brussels Budapest Copenhagen Hanoi Bern Basel Leipzig Kyoto Ottawa Portland Valencia Florence Marseille".split(),
)
NAMES = ("Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Karen Leo Maria Nina Oscar Paul Rosa Simon Tina Ute Victor Wanda Adam Bella Carl Dora".split(),
         "Lucas Sofia Martin Julia Oliver Helena Peter Laura".split())
SKY = "sunny cloudy rainy windy foggy snowy stormy clear".split()
LANGUAGES = "French German Spanish Italian Dutch Polish Swedish Greek".split()
ROOMS = ["kitchen", "bedroom", "hall", "garden", "office", "bathroom", "living room", "cellar"]
VERBS = "check find get show open start read load fetch send test count list search update close".split()
NOUNS = "stock file order ticket room report status note item user record mail price song film book map page score plan".split()


@dataclass(eq=False)
class Kind:
    """One thing a tool can do. Slots in requests and answers are parameter values by position, {r} is the result."""

    names: list[str]
    descriptions: list[str]
    parameters: list[list[tuple[str, str]]]  # for each position: (name, description) variants
    types: list[str]
    value: object  # rng, split -> list of values
    result: object  # rng, values -> string
    requests: tuple[list[str], list[str]]
    answer: str


def word(rng, split) -> str:
    return rng.choice(assets.words(split))


def number(rng, top=99) -> int:
    return rng.randint(1, top)


def choose(rng, pair, split):
    return rng.choice(pair[0] if split == "train" else pair[1])


KINDS = {
    "weather": Kind(["get_weather", "weather", "get_current_weather", "check_weather", "weather_in"], ["Get the weather", "Get the weather in a city", "The weather of a place", "Get the current weather"],
                    [[("city", "The city"), ("location", "City name"), ("place", "The place"), ("town", "Name of the town")]], ["string"],
                    lambda rng, split: [choose(rng, CITIES, split)], lambda rng, v: f"{rng.choice(SKY)}, {rng.randint(-9, 39)} degrees",
                    (["What is the weather in {0}?", "How is the weather in {0}?", "Weather in {0}?", "Tell me the weather in {0}.", "What is the weather like in {0}?", "Is it sunny in {0}?", "How warm is it in {0}?", "Is it cold in {0}?",
                      "What is the weather in {0} today?", "Get the weather in {0}.", "Is it rainy in {0}?"],
                     ["Can you tell me the weather in {0}?", "How is the weather in {0} today?", "Is it warm in {0}?"]),
                    "The weather in {0} is {r}."),
    "time": Kind(["get_time", "time_in", "current_time", "get_current_time"], ["Get the time", "Get the current time in a city", "The time of a place"],
                 [[("city", "The city"), ("location", "City name"), ("zone", "The place")]], ["string"],
                 lambda rng, split: [choose(rng, CITIES, split)], lambda rng, v: f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}",
                 (["What time is it in {0}?", "Tell me the time in {0}.", "What is the time in {0}?", "Time in {0}?", "How late is it in {0}?", "Get the time in {0}."],
                  ["Can you tell me the time in {0}?", "What time is it now in {0}?"]),
                 "The time in {0} is {r}."),
    "add": Kind(["add", "sum", "add_numbers", "plus"], ["Add two numbers", "The sum of two numbers"], [[("a", "First number"), ("x", "A number"), ("first", "The first")], [("b", "Second number"), ("y", "A number"), ("second", "The second")]],
                ["integer", "integer"], lambda rng, split: [number(rng, 999), number(rng, 999)], lambda rng, v: str(v[0] + v[1]),
                (["What is {0} plus {1}?", "Add {0} and {1}.", "What is {0} + {1}?", "How much is {0} plus {1}?", "Tell me the sum of {0} and {1}.", "Please add {0} and {1}."],
                 ["Can you add {0} and {1}?", "What is the sum of {0} and {1}?"]), "The answer is {r}."),
    "multiply": Kind(["multiply", "times", "product", "multiply_numbers"], ["Multiply two numbers", "The product of two numbers"],
                     [[("a", "First number"), ("x", "A number"), ("first", "The first")], [("b", "Second number"), ("y", "A number"), ("second", "The second")]],
                     ["integer", "integer"], lambda rng, split: [number(rng), number(rng)], lambda rng, v: str(v[0] * v[1]),
                     (["What is {0} times {1}?", "Multiply {0} and {1}.", "What is {0} * {1}?", "How much is {0} times {1}?", "Tell me the product of {0} and {1}.", "Please multiply {0} by {1}."],
                      ["Can you multiply {0} and {1}?", "What is the product of {0} and {1}?"]), "The answer is {r}."),
    "price": Kind(["get_price", "price_of", "lookup_price", "check_price"], ["Get the price of an item", "The price of a thing"], [[("item", "The item"), ("product", "The product"), ("name", "Name of the thing")]],
                  ["string"], lambda rng, split: [word(rng, split)], lambda rng, v: f"{number(rng, 400)} {rng.choice(('euros', 'dollars', 'francs'))}",
                  (["How much is the {0}?", "What is the price of the {0}?", "Price of the {0}?", "Tell me the price of the {0}.", "What does the {0} cost?", "How much does the {0} cost?"],
                   ["Can you tell me the price of the {0}?", "How much does the {0} cost today?"]), "The price of the {0} is {r}."),
    "translate": Kind(["translate", "translate_word", "translator"], ["Translate a word", "Translate a word to a language"], [[("word", "The word"), ("text", "The text")], [("language", "The language"), ("to", "The language"), ("target", "Language")]],
                      ["string", "string"], lambda rng, split: [word(rng, split), rng.choice(LANGUAGES)], lambda rng, v: word(rng, "train"),
                      (['Translate "{0}" to {1}.', 'Translate "{0}" into {1}.', 'What is "{0}" in {1}?', 'How do you say "{0}" in {1}?', 'Tell me "{0}" in {1}.'],
                       ['Can you translate "{0}" to {1}?', 'Please tell me what "{0}" is in {1}.']), 'In {1} it is "{r}".'),
    "timer": Kind(["set_timer", "timer", "start_timer"], ["Set a timer", "Start a timer"], [[("minutes", "The minutes"), ("duration", "Number of minutes"), ("time", "Minutes")]], ["integer"],
                  lambda rng, split: [rng.randint(2, 90)], lambda rng, v: rng.choice(("ok", "done", "started")),
                  (["Set a timer for {0} minutes.", "Start a timer for {0} minutes.", "Timer for {0} minutes.", "Please set a timer for {0} minutes.", "I need a timer for {0} minutes."],
                   ["Can you set a timer for {0} minutes?", "Please start a timer of {0} minutes."]), "The timer is set for {0} minutes."),
    "phone": Kind(["get_phone", "phone_number", "find_phone", "lookup_phone"], ["Get a phone number", "Find the phone number of a person"], [[("name", "The name"), ("person", "The person")]], ["string"],
                  lambda rng, split: [choose(rng, NAMES, split)], lambda rng, v: str(rng.randint(10000, 9999999)),
                  (["What is the phone number of {0}?", "Tell me the phone number of {0}.", "Phone number of {0}?", "Find the phone number of {0}.", "I need the phone number of {0}."],
                   ["Can you find the phone number of {0}?", "Please tell me the phone number of {0}."]), "The phone number of {0} is {r}."),
    "light": Kind(["turn_on_light", "light_on", "switch_light"], ["Turn on the light", "Turn on the light in a room"], [[("room", "The room"), ("place", "Which room")]], ["string"],
                  lambda rng, split: [rng.choice(ROOMS)], lambda rng, v: rng.choice(("ok", "done", "on")),
                  (["Turn on the light in the {0}.", "Light in the {0}, please.", "Please turn on the light in the {0}.", "Switch on the light in the {0}.", "I need light in the {0}."],
                   ["Can you turn on the light in the {0}?", "Please switch on the light in the {0}."]), "The light in the {0} is on."),
}
ABOUT_TEXT = (['Look up the word in the picture.', "Look up what is written here.", "Use the tool with the text in the picture.", "Call the tool with the text.", "Look this up.", "Look it up.",
               "Use the tool on the text in the image.", "Look up the text.", "Find out about the text in the picture."],
              ["Please look up the word in the image.", "Call the tool with what is written in the picture.", "Can you look this up?"])
ABOUT_NAMES = ["lookup", "look_up", "define", "search", "find", "dictionary", "get_definition", "search_text", "lookup_text"]


def declare(name: str, description: str, parameters: list[tuple[str, str, str]], required: list[str]) -> dict:
    properties = {p: {"type": t, "description": d} for p, d, t in parameters}
    return {"type": "function", "function": {"name": name, "description": description,
                                             "parameters": {"type": "object", "properties": properties, "required": required}}}


def instance(rng, kind: Kind) -> tuple[dict, list[str]]:
    """A declaration of the kind, and its parameters' names in the order of the slots."""
    chosen = [rng.choice(variants) for variants in kind.parameters]
    names = [name for name, _ in chosen]
    parameters = [(n, d, t) for (n, d), t in zip(chosen, kind.types)]
    return declare(rng.choice(kind.names), rng.choice(kind.descriptions), parameters, names), names


def invented(rng) -> Kind:
    """A tool nobody has heard of, asked for by its own name."""
    verb, noun = rng.choice(VERBS), rng.choice(NOUNS)
    name = rng.choice((f"{verb}_{noun}", f"{verb}_{noun}", f"{noun}_{verb}", f"{verb}_the_{noun}"))
    numeric = rng.random() < 0.3
    parameter = rng.choice(("id", "number", "code", "n") if numeric else ("name", "key", "value", "word", "title", "query"))
    result = rng.choice((lambda rng, v: word(rng, "train"), lambda rng, v: str(number(rng, 9999)), lambda rng, v: f"{word(rng, 'train')} {word(rng, 'train')}"))
    return Kind([name], [f"{verb.capitalize()} the {noun}", f"{verb.capitalize()} a {noun}"], [[(parameter, f"The {parameter}")]], ["integer" if numeric else "string"],
                lambda rng, split: [number(rng, 9999) if numeric else word(rng, split)], result,
                (["Call " + name + " with {0}.", "Use " + name + " with {0}.", "Please call " + name + " with {0}.", f"{verb.capitalize()} the {noun} " + "{0}.",
                  f"Please {verb} the {noun} " + "{0}.", f"I want to {verb} the {noun} " + "{0}."],
                 ["Can you call " + name + " with {0}?", f"Can you {verb} the {noun} " + "{0}?"]),
                "The result is {r}.")


def any_kind(rng) -> Kind:
    return invented(rng) if rng.random() < 0.3 else rng.choice(tuple(KINDS.values()))


def declarations(rng, split, first: dict | None = None, used: Kind | None = None) -> list[dict]:
    """One to three tools in any order, no two that do the same, so that one of them is the right one."""
    found, kinds = ([first] if first else []), [used]
    for _ in range(rng.choice((0, 0, 1, 1, 2)) if first else rng.choice((1, 1, 2))):
        kind = any_kind(rng)
        other, _ = instance(rng, kind)
        if kind not in kinds and other["function"]["name"] not in [f["function"]["name"] for f in found]:
            found.append(other)
            kinds.append(kind)
    rng.shuffle(found)
    return found


def as_content(rng, result: str) -> str:
    """Results come as plain text, or as a small JSON object."""
    if rng.random() < 0.6:
        return result
    key = rng.choice(("result", "value", "answer", "output"))
    return json.dumps({key: int(result) if result.isdigit() and result[0] != "0" and rng.random() < 0.5 else result})


def conversation(rng, split):
    """-> declarations, messages, answer, thought, call. Half of the time the tool was called already and its result is there."""
    kind = any_kind(rng)
    declared, names = instance(rng, kind)
    values = kind.value(rng, split)
    name = declared["function"]["name"]
    request = choose(rng, kind.requests, split).format(*values)
    if rng.random() < 0.1:
        request = request[0].lower() + request[1:] if not request.startswith(("Paris", "I ")) else request
    tools = declarations(rng, split, declared, kind)
    call = (name, dict(zip(names, values)))
    messages = [{"role": "user", "content": request}]
    if rng.random() < 0.5:
        return tools, messages, "", f"I should call {name}.", call
    result = kind.result(rng, values)
    messages.append({"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": name, "arguments": call[1]}}]})
    messages.append({"role": "tool", "tool_call_id": "call_1", "name": name, "content": as_content(rng, result)})
    return tools, messages, kind.answer.format(*values, r=result), f"The tool says {result}.", None


def about_text(rng, split, text: str):
    """A request to call a tool with the text of a picture."""
    name = rng.choice(ABOUT_NAMES)
    parameter = rng.choice(("word", "text", "query", "term"))
    declared = declare(name, rng.choice(("Look up a word", "Look up a text", "Find out about a word", "Search for a text")), [(parameter, rng.choice(("The word", "The text")), "string")], [parameter])
    tools = [declared] if rng.random() < 0.6 else declarations(rng, split, declared)
    return tools, choose(rng, ABOUT_TEXT, split), (name, {parameter: text})
