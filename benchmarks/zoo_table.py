"""What `crossmost.zoo` knows, as the tables of README.md.

    python benchmarks/zoo_table.py

writes the public encoders and the conventions of their input between their marks.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tables import write_between

from crossmost.zoo import Model, list_models
from crossmost.zoo_text import accuracy, channels, filler, licenses, parameters, patches

README = Path(__file__).resolve().parent.parent / "README.md"


def model_table() -> str:
    """A line an encoder: size, terms, and what is reported."""
    head = ("name", "parameters", "licence", "zero-shot top-1 in percent, as reported")
    return markdown(
        head, [(named(model), parameters(model), licenses(model), accuracy(model)) for model in list_models()]
    )


def convention_table() -> str:
    """A line an encoder: what its input has to be, and which text it fits."""
    head = ("name", "up axis", "points", "a point", "no colour", "patches", "text model")
    return markdown(
        head,
        [
            (
                model.name,
                card.up_axis,
                str(card.points),
                channels(card),
                filler(card),
                patches(card),
                model.text,
            )
            for model in list_models()
            for card in [model.card]
        ],
    )


def named(model: Model) -> str:
    """Its name, linked to its paper."""
    return f"[{model.name}]({model.paper})"


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def main() -> None:
    write_between(README, "zoo", model_table())
    write_between(README, "conventions", convention_table())


if __name__ == "__main__":
    main()
