"""The language of the demo model: a small closed English about invented companies, people, devices and towns.

A world is drawn from a seeded Random. Each of its entities has one document of 3 to 6 sentences, and every
sentence begins with (or soon after) the name of its subject. The answer to a question is always a canonical
statement, so answering is finding the statement and repeating it:

    single   Who leads Krekol?                        Krekol is led by Mudi.
    two-hop  Who leads the company that makes Tofu?   Tofu is made by Krekol. Krekol is led by Mudi.

No torch here. The names are in names.py, the prompt's tokens in tokenizer.py.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal

from flowserve.demo.names import Split, all_names, draw_names

SYSTEM = "Answer from the passages only."
QUESTION = "Question: "

Kind = Literal["company", "person", "device", "town"]
QuestionType = Literal["single", "two-hop"]
QUESTION_TYPES: tuple[QuestionType, ...] = ("single", "two-hop")

INSTRUMENTS = ("piano", "violin", "flute", "drums", "guitar", "harp", "organ", "trumpet", "cello", "banjo")
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "brown", "orange", "purple", "grey")
FOODS = ("cheese", "bread", "honey", "soup", "cakes", "apples", "fish", "wine", "tea", "salt")
YEARS = tuple(str(year) for year in range(1930, 2010))
NUMBERS = tuple(str(number) for number in range(10, 100))

VALUES: dict[str, tuple[str, ...]] = {
    "instrument": INSTRUMENTS,
    "colour": COLOURS,
    "food": FOODS,
    "year": YEARS,
    "number": NUMBERS,
}


@dataclass(frozen=True, slots=True)
class Relation:
    """One thing that can be stated about a subject. `{s}` stands for the subject, `{v}` for the value."""

    name: str
    subject: Kind
    value: str  # a Kind, or a key of VALUES
    statement: str  # the canonical statement, which answers repeat
    variants: tuple[str, ...]  # further wordings, used in documents only
    questions: tuple[str, ...]
    bridges: tuple[str, ...] = ()  # noun phrases for the value; only relations between entities have them


RELATIONS = (
    Relation(
        "leader", "company", "person", "{s} is led by {v}.",
        ("{s} is now led by {v}.", "{s} has long been led by {v}."),
        ("Who leads {s}?", "Who is {s} led by?"),
        ("the leader of {s}", "the person who leads {s}"),
    ),
    Relation(
        "base", "company", "town", "{s} is based in {v}.",
        ("{s} is still based in {v}.", "{s} has long been based in {v}."),
        ("Where is {s} based?", "In which town is {s} based?"),
        ("the town where {s} is based", "the base of {s}"),
    ),
    Relation(
        "product", "company", "device", "{s} makes {v}.",
        ("{s} proudly makes {v}.", "{s} designs and makes {v}."),
        ("What does {s} make?", "Which device does {s} make?"),
        ("the device that {s} makes", "the product of {s}"),
    ),
    Relation(
        "founded", "company", "year", "{s} was founded in {v}.",
        ("{s} was first founded in {v}.",),
        ("When was {s} founded?", "In which year was {s} founded?"),
    ),
    Relation(
        "staff", "company", "number", "{s} employs {v} people.",
        ("{s} now employs {v} people.",),
        ("How many people does {s} employ?", "How many people work for {s}?"),
    ),
    Relation(
        "home", "person", "town", "{s} lives in {v}.",
        ("{s} still lives in {v}.", "{s} now lives in {v}."),
        ("Where does {s} live?", "In which town does {s} live?"),
        ("the town where {s} lives", "the home of {s}"),
    ),
    Relation(
        "born", "person", "year", "{s} was born in {v}.",
        ("{s} was probably born in {v}.",),
        ("When was {s} born?", "In which year was {s} born?"),
    ),
    Relation(
        "plays", "person", "instrument", "{s} plays the {v}.",
        ("{s} often plays the {v}.",),
        ("What does {s} play?", "Which instrument does {s} play?"),
    ),
    Relation(
        "leads", "person", "company", "{s} leads {v}.",
        ("{s} now leads {v}.",),
        ("What does {s} lead?", "Which company does {s} lead?"),
        ("the company that {s} leads", "the company led by {s}"),
    ),
    Relation(
        "governs", "person", "town", "{s} governs {v}.",
        ("{s} now governs {v}.",),
        ("What does {s} govern?", "Which town does {s} govern?"),
        ("the town that {s} governs", "the town governed by {s}"),
    ),
    Relation(
        "maker", "device", "company", "{s} is made by {v}.",
        ("{s} is still made by {v}.", "{s} is designed and made by {v}."),
        ("Who makes {s}?", "Which company makes {s}?"),
        ("the company that makes {s}", "the maker of {s}"),
    ),
    Relation(
        "price", "device", "number", "{s} costs {v} coins.",
        ("{s} now costs {v} coins.",),
        ("How much does {s} cost?", "What is the price of {s}?"),
    ),
    Relation(
        "weight", "device", "number", "{s} weighs {v} grams.",
        ("{s} only weighs {v} grams.",),
        ("How much does {s} weigh?", "What is the weight of {s}?"),
    ),
    Relation(
        "colour", "device", "colour", "{s} is painted {v}.",
        ("{s} is always painted {v}.",),
        ("What is the colour of {s}?", "In which colour is {s} painted?"),
    ),
    Relation(
        "river", "town", "river", "{s} lies on the {v}.",
        ("{s} also lies on the {v}.",),
        ("Which river does {s} lie on?", "On which river does {s} lie?"),
    ),
    Relation(
        "governor", "town", "person", "{s} is governed by {v}.",
        ("{s} is now governed by {v}.",),
        ("Who governs {s}?", "Who is {s} governed by?"),
        ("the governor of {s}", "the person who governs {s}"),
    ),
    Relation(
        "food", "town", "food", "{s} is known for {v}.",
        ("{s} is well known for {v}.",),
        ("What is {s} known for?", "For what is {s} known?"),
    ),
)  # fmt: skip
RELATION = {relation.name: relation for relation in RELATIONS}

KIND_SENTENCE = "{s} is a {v}."
HOME_SENTENCE = "{s} is the home of {v}."  # a town names the companies and people that are linked to it
OPENINGS = ("In short, ", "In fact, ", "It is known that ", "People say that ", "As everyone knows, ")
VARIANT_SHARE = 0.25
OPENING_SHARE = 0.1
KINDS: tuple[Kind, ...] = ("company", "person", "device", "town")


@dataclass(frozen=True, slots=True)
class Fact:
    """A relation between a subject's name and a value, which is a name or a word of VALUES."""

    subject: str
    relation: Relation
    value: str

    def statement(self) -> str:
        return self.relation.statement.format(s=self.subject, v=self.value)


@dataclass(frozen=True, slots=True)
class Document:
    """What is written about one entity, and the facts that its sentences state."""

    name: str
    kind: Kind
    text: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its exact answer, and the names of the entities whose documents state the answer."""

    type: QuestionType
    text: str
    answer: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class World:
    """Entities with their facts. `homes` are (town, resident) pairs that only town documents mention."""

    kinds: dict[str, Kind]
    facts: dict[str, tuple[Fact, ...]]
    homes: tuple[tuple[str, str], ...]


def words() -> tuple[str, ...]:
    """Every word, number and year that is not a name, sorted."""
    texts: list[str] = [SYSTEM, QUESTION, KIND_SENTENCE, HOME_SENTENCE, *OPENINGS, *KINDS]
    for relation in RELATIONS:
        texts += [relation.statement, *relation.variants, *relation.questions, *relation.bridges]
    for values in VALUES.values():
        texts += values
    cleaned = (re.sub(r"{\w}", " ", text) for text in texts)
    return tuple(sorted({word for text in cleaned for word in re.findall(r"\w+", text)}))


@cache
def names_of(split: Split) -> tuple[str, ...]:
    """The names of a split that are not also words of the language."""
    return all_names(split, frozenset(words()))


def draw_world(rng: Random, num_clusters: int, split: Split) -> World:
    """Clusters of a company, its leader, its device, its town and the town's governor, who may live elsewhere."""
    names = iter(draw_names(rng, names_of(split), 6 * num_clusters))
    clusters = [[next(names) for _ in range(6)] for _ in range(num_clusters)]
    towns = [town for _, _, _, town, _, _ in clusters]
    leader_homes = rng.sample(towns, num_clusters)
    governor_homes = rng.sample(towns, num_clusters)
    kinds: dict[str, Kind] = {}
    facts: dict[str, tuple[Fact, ...]] = {}
    homes: list[tuple[str, str]] = []

    def add(name: str, kind: Kind, links: dict[str, str]) -> None:
        kinds[name] = kind
        relations = (r for r in RELATIONS if r.subject == kind and (r.name in links or r.value in VALUES))
        facts[name] = tuple(Fact(name, r, links.get(r.name) or rng.choice(VALUES[r.value])) for r in relations)

    for cluster, leader_home, governor_home in zip(clusters, leader_homes, governor_homes, strict=True):
        company, leader, device, town, governor, river = cluster
        add(company, "company", {"leader": leader, "base": town, "product": device})
        add(leader, "person", {"home": leader_home, "leads": company})
        add(device, "device", {"maker": company})
        add(town, "town", {"river": river, "governor": governor})
        add(governor, "person", {"home": governor_home, "governs": town})
        homes += [(town, company), (leader_home, leader), (governor_home, governor)]
    return World(kinds, facts, tuple(homes))


def _sentence(rng: Random, canonical: str, variants: Sequence[str], subject: str, value: str) -> str:
    template = rng.choice(variants) if variants and rng.random() < VARIANT_SHARE else canonical
    opening = rng.choice(OPENINGS) if rng.random() < OPENING_SHARE else ""
    return opening + template.format(s=subject, v=value)


def write_document(rng: Random, world: World, name: str, *, drop_share: float = 0.0) -> Document:
    """The document of an entity. With probability `drop_share` each fact is left out, but at least two remain."""
    facts = list(world.facts[name])
    rng.shuffle(facts)
    kept = [fact for i, fact in enumerate(facts) if i < 2 or rng.random() >= drop_share]
    sentences = [_sentence(rng, f.relation.statement, f.relation.variants, name, f.value) for f in kept]
    residents = [resident for town, resident in world.homes if town == name]
    sentences += [_sentence(rng, HOME_SENTENCE, (), name, r) for r in residents if rng.random() >= drop_share]
    rng.shuffle(sentences)
    kind = KIND_SENTENCE.format(s=name, v=world.kinds[name])
    if rng.random() >= drop_share:
        sentences.insert(0, kind)
    return Document(name, world.kinds[name], " ".join(sentences), tuple(kept))


def ask_single(rng: Random, fact: Fact) -> Question:
    text = rng.choice(fact.relation.questions).format(s=fact.subject)
    return Question("single", text, fact.statement(), (fact.subject,))


def ask_two_hop(rng: Random, first: Fact, second: Fact) -> Question:
    bridge = rng.choice(first.relation.bridges).format(s=first.subject)
    text = rng.choice(second.relation.questions).format(s=bridge)
    answer = f"{first.statement()} {second.statement()}"
    return Question("two-hop", text, answer, (first.subject, second.subject))


def two_hops(facts: Iterable[Fact]) -> Iterator[tuple[Fact, Fact]]:
    """Pairs of facts where the second is about the first one's value and does not lead back."""
    by_subject: dict[str, list[Fact]] = {}
    facts = tuple(facts)
    for fact in facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    for first in facts:
        if first.relation.bridges:
            for second in by_subject.get(first.value, ()):
                if second.value != first.subject:
                    yield first, second


def questions_about(rng: Random, documents: Sequence[Document]) -> dict[QuestionType, list[Question]]:
    """Every question that the documents answer, each in one of its wordings, in random order within its type."""
    facts = [fact for document in documents for fact in document.facts]
    singles = [ask_single(rng, fact) for fact in facts]
    doubles = [ask_two_hop(rng, first, second) for first, second in two_hops(facts)]
    rng.shuffle(singles)
    rng.shuffle(doubles)
    return {"single": singles, "two-hop": doubles}


def draw_documents(rng: Random, split: Split, num_documents: int) -> list[Document]:
    """Documents of one world in random order: linked ones, and others that are often all of one kind.

    Retrieval returns such mixtures: the linked documents, and those that are like them.
    """
    world = draw_world(rng, rng.randint(2, max(2, num_documents)), split)
    names = list(world.kinds)
    focus = rng.choice((*KINDS, None, None, None))
    chosen = [rng.choice(names)]
    while len(chosen) < num_documents:
        rest = [name for name in names if name not in chosen]
        linked = [f.value for name in chosen for f in world.facts[name] if f.value in rest]
        like = [name for name in rest if world.kinds[name] == focus]
        pool = (linked if rng.random() < 0.45 else like) or rest
        chosen.append(rng.choice(pool))
    rng.shuffle(chosen)
    drop_share = rng.choice((0.0, 0.0, 0.4))
    return [write_document(rng, world, name, drop_share=drop_share) for name in chosen]


def user_text(passages: Sequence[str], question: str) -> str:
    """The user's turn of the prompt, one passage per line."""
    return "".join(f"{passage}\n" for passage in passages) + QUESTION + question
