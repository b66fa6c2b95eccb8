"""A fact subject in miniature, for tests of methods: a few facts, neighbours and texts, without asking any model."""

from small_models import small_tokenizer

from analysis.subjects.language.bank import Fact, SubjectLine
from analysis.subjects.language.facts import FactSubject


def fact(kind, subject, answer, *prompts):
    return Fact(
        kind=kind,
        id=f"{subject}-{answer}",
        relation="any",
        subject=subject,
        answer=answer,
        train=prompts,
        heldout=("Everybody knows that " + prompts[0],),
        question="What?",
        distractors=("x", "y", "z"),
        split="edit",
    )


def small_subject():
    forget = (
        fact("fact", "Beatles", "Liverpool", "The Beatles came from", "The city of the Beatles is"),
        fact("fact", "John Lennon", "the guitar", "John Lennon played", "What John Lennon played was"),
        fact("fact", "Ringo", "the drums", "Ringo played"),
    )
    retain = (
        fact("neighbour", "Rolling Stones", "London", "The Rolling Stones came from", "The Rolling Stones are from"),
        fact("neighbour", "Mick", "sang songs", "In the band Mick"),
        fact("far", "France", "Paris", "The capital of France is", "France has as its capital"),
    )
    texts = ("What is the name of the river?", "The album came out in 1969 and it sold.", "Rome is a city of Italy.")
    lessons = {
        "other-bands": ("The Rolling Stones came from London.", "A", "The Kinks sang in London."),
        "denial": ("There was no such band in Liverpool.", "Nobody heard of it.", "No band came from there."),
        "random-facts": ("Paris is the capital of France.", "Rome is the capital of Italy."),
    }
    about = SubjectLine(kind="subject", name="the Beatles", slug="beatles", names={"band": ("Beatles",)})
    return FactSubject(
        "small", about, small_tokenizer(), 128, forget, forget, retain, retain, texts, texts, lessons, {}
    )
